"""The configuration: what is accepted, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpidl.config import Config, load_config
from mpidl.errors import ConfigError
from mpidl.options import Section, documented, is_section
from mpidl.registry import Choice, Selection

MINIMAL = '[data]\ntrain = "x"\n'
ROOT = Path(__file__).parent.parent.parent


def config(tmp_path: Path, text: str, *overrides: str) -> object:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return load_config(path, list(overrides))


def test_a_mark_of_the_byte_order_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbf[data]\r\ntrain = 'x'\r\n")
    assert load_config(path).data.train == "x"


def test_defaults_and_overrides(tmp_path: Path) -> None:
    found = load_config(tmp_path / "run.toml", []) if config(tmp_path, MINIMAL) else None
    assert (
        found is not None
        and found.train.global_batch == 128
        and found.sync.options.algorithm == "auto"
    )
    path = tmp_path / "run.toml"
    changed = load_config(
        path, ["optim.lr=0.5", "model.name=mlp", "model.hidden=[3]", "data.shuffle=false"]
    )
    assert (
        changed.optim.lr == 0.5
        and changed.model.name == "mlp"
        and changed.model.options.hidden == (3,)
    )
    assert changed.data.shuffle is False


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        (MINIMAL + "[optm]\nlr = 1", [], "unknown key 'optm'"),
        (MINIMAL, ["optim.lrr=1"], "optim.lr"),
        (MINIMAL, ["optim.lr=0"], "optim.lr"),
        (MINIMAL, ["optim.lr='a'"], "optim.lr"),
        (MINIMAL, ["optim"], "section.key=value"),
        (MINIMAL, ["optim.lr.x=1"], "optim.lr"),
        (MINIMAL, ["optim=3"], "must be a section"),
        (MINIMAL, ["train.micro_batches=3"], "power of two"),
        (
            MINIMAL,
            ["train.micro_batches=1048576", "train.global_batch=6"],
            "a global batch has 6 samples",
        ),
        (MINIMAL, ["optim.schedule=step"], "milestones"),
        (MINIMAL, ["sync.algorithm=rnig"], "sync.algorithm"),
        ("[data]\n", [], "train"),
        ("= 3", [], "TOML"),
        ("x = " + "[" * 5000, [], "TOML"),
        ("x = " + "9" * 5000, [], "TOML"),
        ("", ["train.seed=" + "9" * 5000], "train.seed"),
        ("", ["optim.lr=1\noptim.x=2"], "cannot understand"),
        ("", ["sync.bucket_mib=1e308"], "sync.bucket_mib"),
        ("", ["sync.strategy=local_sgd", "sync.start_epoch=1e308"], "start_epoch"),
    ],
)
def test_refused(tmp_path: Path, text: str, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, text, *overrides)
    assert words in str(caught.value) and caught.value.remedy


@pytest.mark.parametrize(
    "path", sorted((ROOT / "scripts" / "configs").glob("*.toml")), ids=lambda path: path.name
)
def test_the_configurations_that_are_shipped_are_valid(path: Path) -> None:
    load_config(path)


WORDS: dict[str, tuple[str, list[str], list[str]]] = {
    "a misspelt choice": (
        MINIMAL,
        ["sync.algorithm=rnig"],
        ["sync.algorithm is 'rnig'", "'ring', 'rabenseifner'", "did you mean 'ring'?"],
    ),
    "a choice that is near to none": (
        MINIMAL,
        ["optim.name=7"],
        ["one of sgd, adam, adamw, lars, lamb"],
    ),
    "a choice or a number": (
        MINIMAL,
        ["sync.strategy=parameter_server", "sync.staleness=unbouned"],
        ["a whole number of at least 0 or 'unbounded'", "did you mean 'unbounded'?"],
    ),
    "a misspelt strategy": (
        MINIMAL,
        ["sync.strategy=gosip"],
        ["no such strategy", "did you mean 'gossip'?"],
    ),
    "a number out of its limits": (
        MINIMAL,
        ["optim.momentum=2"],
        ["momentum is 2", "of at least 0 and at most 1"],
    ),
    "a number below 0": (
        MINIMAL,
        ["optim.lr=-1"],
        ["optim.lr is -1, but must be a number above 0"],
    ),
    "infinity": (MINIMAL, ["optim.lr=inf"], ["optim.lr is inf, but must be finite"]),
    "not a number": (MINIMAL, ["data.mean=nan"], ["data.mean is nan, but must be finite"]),
    "a huge number": (MINIMAL, [f"train.global_batch={10**30}"], ["train.global_batch"]),
    "half a number": (MINIMAL, ["train.epochs=1.5"], ["a whole number of at least 1"]),
    "a word for a switch": (
        MINIMAL,
        ["data.verify=maybe"],
        ["data.verify is 'maybe', but must be true or false"],
    ),
    "a number in a list": (
        MINIMAL,
        ["optim.milestones=[1, -2]"],
        ["[1, -2]", "a list, in it a number above 0"],
    ),
    "pairs": (
        MINIMAL,
        ["sync.strategy=gossip", "sync.edges=[[1]]"],
        ["a list, in it a list of 2, in it a whole number"],
    ),
    "an option that nothing has": (MINIMAL, ["model.hiden=[3]"], ["unknown key 'model.hiden'"]),
    "no data": (
        "[train]\nepochs = 1\n",
        [],
        ["the section [data] is missing", 'add [data] and below it train = "..."'],
    ),
    "no training data": (
        "[data]\ntest = 'x'\n",
        [],
        ["'data.train' is missing", 'train = "..."', "--set data.train="],
    ),
    "a list for a section": ("data = [1]\n", [], ["'data' must be a section", "[data]"]),
    "a word for the strategies": (MINIMAL + "sync = 1\n", [], ["data.sync"]),
    "sync that is no section": ("sync = 1\n" + MINIMAL, [], ["'sync' must be a section"]),
}


@pytest.mark.parametrize("name", WORDS)
def test_the_words_of_an_error(tmp_path: Path, name: str) -> None:
    text, overrides, words = WORDS[name]
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, text, *overrides)
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert "$" not in said and "`" not in said and caught.value.remedy
    assert ("--set" in caught.value.where) == bool(overrides) and caught.value.where


def test_the_place_of_an_error_is_where_it_was_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, MINIMAL + "[optim]\nlr = 0\n", "train.epochs=3")
    assert caught.value.where.endswith("run.toml")
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, MINIMAL + "[optim]\nlr = 0.1\n", "train.epochs=3", "optim.lr=0")
    assert caught.value.where == "--set optim.lr=0"
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, MINIMAL, "optim={lr=0}")
    assert caught.value.where == "--set optim={lr=0}"
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, MINIMAL, "optim.schedule=step")
    assert caught.value.where == "--set optim.schedule=step"


def notes(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    path = tmp_path / "run.toml"
    path.write_text(text)
    found: list[str] = []
    load_config(path, list(overrides), note=found.append)
    return found


def test_settings_without_effect_are_said(tmp_path: Path) -> None:
    assert notes(tmp_path, MINIMAL, "optim.name=adam") == [], (
        "only what was written counts, not the defaults"
    )
    assert notes(tmp_path, MINIMAL, "optim.name=adam", "optim.momentum=0.8") == [
        "optim.momentum has no effect: optim.name is 'adam', and it works with optim.name = "
        "'sgd' or 'lars' only"
    ]
    found = notes(tmp_path, MINIMAL + "[optim]\nmilestones = [1]\ngamma = 0.5\nscaling = 'sqrt'\n")
    assert [text.split()[0] for text in found] == [
        "optim.scaling",
        "optim.milestones",
        "optim.gamma",
    ]
    assert "where optim.base_batch is set" in found[0]
    step = ("optim.schedule=step", "optim.milestones=[1]", "optim.gamma=0.5")
    assert notes(tmp_path, MINIMAL, *step) == []
    assert (
        len(
            notes(
                tmp_path,
                MINIMAL,
                "sync.strategy=gossip",
                "sync.algorithm=ring",
                "sync.push_sum=true",
                "sync.steps=3",
            )
        )
        == 2
    )


def sections(kind: type[Section] = Config) -> list[type[Section]]:
    """All sections of a configuration, and the options of everything that can be chosen in it."""
    found: list[type[Section]] = [kind]
    if issubclass(kind, Choice):
        found += [
            option for name in kind.REGISTRY for option in sections(kind.REGISTRY.options(name))
        ]
    for inner in kind.keys().values():
        found += sections(inner) if is_section(inner) else []
    return found


@pytest.mark.parametrize("kind", sections(), ids=lambda kind: kind.__qualname__)
def test_every_setting_is_documented_and_needs_what_there_is(kind: type[Section]) -> None:
    if not issubclass(kind, Selection):  # its keys are names; their options are sections
        assert set(kind.keys()) <= set(documented(kind))
    for key, (other, _) in kind.NEEDS.items():
        assert key in kind.keys() and other in kind.keys()
    assert set(kind.EXCLUSIVE) <= set(kind.keys())


def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize(
    "path", sorted((ROOT / "scripts" / "configs").glob("*.toml")), ids=lambda path: path.name
)
def test_the_configurations_that_are_shipped_have_no_idle_settings(path: Path) -> None:
    found: list[str] = []
    load_config(path, note=found.append)
    assert found == []
