"""Writes tables of documents from the code: python scripts/document.py [--check]

In docs/configuration.md settings, defaults and meanings come from the sections and the registries
of the configuration, the environment variables from mpidl.settings. Those of docs/serving.md come
from mpidl.serving.settings, the kernels in kernels/README.md from mpidl.backend.table. What stands
between two markers of a page is replaced.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from mpidl.backend.table import KERNELS
from mpidl.config import Config
from mpidl.options import Section, describe, documented, is_section
from mpidl.registry import Choice, Selection
from mpidl.serving.settings import ModelSettings, SecuritySettings, ServerSettings
from mpidl.settings import VARIABLES

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "configuration.md"
PAGES = (PAGE, ROOT / "docs" / "serving.md", ROOT / "kernels" / "README.md")
BLOCK = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
Row = tuple[str, str, str]  # key, default, meaning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    args = parser.parse_args()
    for page in PAGES:
        text = page.read_text()
        made = update(text)
        if args.check and made != text:
            sys.exit(f"{page} is not up to date: run {sys.argv[0]}")
        page.write_text(made)


def update(text: str) -> str:
    """The page with new tables."""
    tables = {
        "settings": settings(),
        "serving": serving(),
        "variables": variables(),
        "kernels": kernels(),
    }
    return BLOCK.sub(lambda found: f"{found[1]}\n{tables[found[2]]}\n{found[3]}", text)


def settings() -> str:
    """One table for each section of a configuration."""
    return "\n".join(section(name, kind) for name, kind in Config.keys().items())


def serving() -> str:
    """The sections of models.toml."""
    sections = {
        "models.NAME": ModelSettings,
        "server": ServerSettings,
        "security": SecuritySettings,
    }
    return "\n".join(section(name, kind) for name, kind in sections.items())


def section(name: str, kind: type[Section]) -> str:
    if issubclass(kind, Selection):
        return selection(name, kind)
    text = f"### [{name}]\n\n{summary(kind)}\n\n{table(rows(kind, ''))}"
    if not issubclass(kind, Choice):
        return text
    alike: dict[tuple[Row, ...], list[str]] = {}
    for each in kind.REGISTRY:
        options = tuple(rows(kind.REGISTRY.options(each), ""))
        if options:
            alike.setdefault(options, []).append(f'`"{each}"`')
    for options, names in alike.items():
        text += f"\nWith `{kind.KEY}` = {' or '.join(names)}:\n\n{table(options)}"
    return text


def selection(name: str, kind: type[Selection]) -> str:
    """One table of the options of everything that can be chosen."""
    found = (row for each in kind.REGISTRY for row in rows(kind.REGISTRY.options(each), f"{each}."))
    return f"### [{name}]\n\n{summary(kind)}\n\n{table(found)}"


def rows(kind: type[Section], prefix: str) -> Iterator[Row]:
    """One for each setting; those of sections within it too."""
    meanings = documented(kind)
    keys = kind.keys()
    for field in msgspec.structs.fields(kind):
        if field.name not in keys:
            continue
        inner = keys[field.name]
        if not is_section(inner):
            yield f"{prefix}{field.name}", default(field), meaning(meanings[field.name], inner)
            continue
        yield from choice_rows(f"{prefix}{field.name}", inner, meanings[field.name])


def choice_rows(key: str, kind: type[Section], text: str) -> Iterator[Row]:
    """Of a choice within a section: its name alone is a short form."""
    if not issubclass(kind, Choice):
        yield key, "", text
        yield from rows(kind, f"{key}.")
        return
    chosen = next(field for field in msgspec.structs.fields(kind) if field.name == kind.KEY)
    names = [*([kind.NONE] if kind.NONE else []), *kind.REGISTRY]
    yield key, default(chosen), f"{text} {choices(names)}"
    yield from (row for row in rows(kind, f"{key}.") if row[0] != f"{key}.{kind.KEY}")
    alike: dict[Row, list[str]] = {}
    for name in kind.REGISTRY:
        for row in rows(kind.REGISTRY.options(name), f"{key}."):
            alike.setdefault(row, []).append(name)
    for (name, value, words), holders in alike.items():
        yield name, value, f"With {', '.join(holders)}: {words}"


def default(field: Any) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return str(list(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def meaning(text: str, kind: Any) -> str:
    """The description, and the choices where it does not name them all."""
    listed = re.findall(r"'([^']+)'", describe(kind)) if "one of" in describe(kind) else []
    missing = [name for name in listed if name not in text]
    return f"{text} {choices(listed)}" if missing else text


def choices(names: list[str]) -> str:
    return "One of " + ", ".join(f'"{name}"' for name in names) + "."


def summary(kind: type[Section]) -> str:
    """The first paragraph of a docstring."""
    return " ".join((kind.__doc__ or "").strip().split("\n\n")[0].split())


def table(found: Iterable[Row]) -> str:
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{key}` | {value} | {escape(words)} |" for key, value, words in found]
    return "\n".join(lines) + "\n"


def variables() -> str:
    lines = ["| variable | default | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{v.name}` | {v.default or '-'} | {escape(v.meaning)} |" for v in VARIABLES]
    return "\n".join(lines) + "\n"


def kernels() -> str:
    """One row for each line of the table of kernels."""
    lines = ["| kernel | file | backends | arguments |", "| --- | --- | --- | --- |"]
    for name, kernel in KERNELS.items():
        backends = ", ".join(kernel.backends)
        lines.append(f"| {name} | {kernel.family} | {backends} | `{kernel.signature}` |")
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    main()
