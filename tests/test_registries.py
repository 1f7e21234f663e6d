"""Registries, what is defined, what is exported and what is documented are the same."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mpidl
from mpidl.augment import AUGMENTATIONS, Augmentation
from mpidl.compression import COMPRESSORS, Compressor
from mpidl.config import Config
from mpidl.errors import ConfigError
from mpidl.models import MODELS
from mpidl.models.weights import FORMATS, Format
from mpidl.nn import LOSSES, Loss
from mpidl.optim import OPTIMIZERS, Optimizer
from mpidl.options import Section, documented, is_section
from mpidl.registry import Choice, Registry, Selection
from mpidl.sync import STRATEGIES, Strategy

ROOT = Path(__file__).parent.parent
REGISTRIES: dict[str, Registry[Any]] = {
    registry.kind: registry
    for registry in (
        STRATEGIES,
        OPTIMIZERS,
        COMPRESSORS,
        MODELS,
        LOSSES,
        FORMATS,
        AUGMENTATIONS,
    )
}
ENTRIES = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry]


def modules() -> Iterator[ModuleType]:
    """All modules of mpidl that can be imported without a GPU and without a launcher."""
    for found in pkgutil.walk_packages(mpidl.__path__, "mpidl."):
        if not found.name.endswith("__main__") and "_kernels" not in found.name:
            try:
                yield importlib.import_module(found.name)
            except ModuleNotFoundError as error:
                if error.name is None or error.name.startswith("mpidl"):
                    raise


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_every_entry_is_found_and_says_what_it_takes(kind: str, name: str) -> None:
    registry = REGISTRIES[kind]
    options = registry.options(name)
    assert set(options.keys()) <= set(documented(options)), "an option without a description"
    options.read({}, place())  # all have defaults


def place() -> Any:
    from mpidl.options import Place

    return Place()


@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_name_that_is_not_registered_is_refused_with_the_nearest(kind: str) -> None:
    registry = REGISTRIES[kind]
    name = next(iter(registry))
    with pytest.raises(ConfigError) as caught:
        registry.check(name + "x")
    assert registry.setting in str(caught.value) and repr(name) in caught.value.remedy


@pytest.mark.parametrize(
    ("base", "registry"),
    [
        (Strategy, STRATEGIES),
        (Optimizer, OPTIMIZERS),
        (Compressor, COMPRESSORS),
        (Loss, LOSSES),
        (Format, FORMATS),
        (Augmentation, AUGMENTATIONS),
    ],
    ids=["strategy", "optimizer", "compressor", "loss", "format", "augmentation"],
)
def test_everything_that_is_defined_is_registered(base: type[Any], registry: Any) -> None:
    """A concrete class with options of its own, in a package that has a registry."""
    registered = {registry[name] for name in registry}
    package = base.__module__.rpartition(".")[0]
    for module in modules():
        if not module.__name__.startswith(package):
            continue
        for _, found in inspect.getmembers(module, inspect.isclass):
            if not issubclass(found, base) or found.__module__ != module.__name__:
                continue
            own = "Options" in vars(found) and not inspect.isabstract(found)
            assert not own or found is base or found in registered, found


def test_everything_that_is_exported_exists_and_the_other_way_round() -> None:
    for module in modules():
        names = getattr(module, "__all__", None)
        if names is None:
            continue
        assert list(names) == sorted(set(names), key=order), f"{module.__name__}: sorted, once each"
        for name in names:
            assert hasattr(module, name), f"{module.__name__}.{name}"
        if module.__file__ is not None and module.__file__.endswith("__init__.py"):
            hidden = imported(Path(module.__file__)) - set(names)
            assert not hidden, f"{module.__name__} imports {hidden} for nobody"


def order(name: str) -> tuple[int, str]:
    """As ruff sorts: constants, classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def imported(path: Path) -> set[str]:
    """Public names that an `__init__` takes from its own modules."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mpidl"):
            found |= {alias.asname or alias.name for alias in node.names}
    return {name for name in found - used if not name.startswith("_")}


def sections(kind: type[Section] = Config) -> Iterator[type[Section]]:
    """All sections of a configuration, and the options of everything that can be chosen in it."""
    yield kind
    if issubclass(kind, Choice):
        for name in kind.REGISTRY:
            yield from sections(kind.REGISTRY.options(name))
    for inner in kind.keys().values():
        if is_section(inner):
            yield from sections(inner)


@pytest.mark.parametrize("kind", dict.fromkeys(sections()), ids=lambda kind: kind.__qualname__)
def test_every_setting_is_documented(kind: type[Section]) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    for key in kind.keys():
        described = issubclass(kind, Selection) or documented(kind).get(key)
        assert described, f"{kind.__qualname__}.{key} is not described"
        assert re.search(rf"[`.]{key}[`.]|\[{key}", text), f"docs/configuration.md lacks {key}"
    for key, (other, _) in kind.NEEDS.items():
        assert key in kind.keys() and other in kind.keys()
    assert set(kind.EXCLUSIVE) <= set(kind.keys())


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_name_is_in_the_documents(kind: str) -> None:
    text = "\n".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    missing = [
        name for name in REGISTRIES[kind] if f"`{name}`" not in text and f'"{name}"' not in text
    ]
    assert not missing
