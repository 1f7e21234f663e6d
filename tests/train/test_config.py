"""The configuration: what is accepted, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpidl.errors import ConfigError
from mpidl.train.config import load_config

MINIMAL = '[data]\ntrain = "x"\n'
ROOT = Path(__file__).parent.parent.parent


def config(tmp_path: Path, text: str, *overrides: str) -> object:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return load_config(path, list(overrides))


def test_defaults_and_overrides(tmp_path: Path) -> None:
    found = load_config(tmp_path / "run.toml", []) if config(tmp_path, MINIMAL) else None
    assert found is not None and found.train.global_batch == 128 and found.sync.algorithm == "auto"
    path = tmp_path / "run.toml"
    changed = load_config(path, ["optim.lr=0.5", "model.name=mlp", "model.options={hidden=[3]}", "data.shuffle=false"])
    assert changed.optim.lr == 0.5 and changed.model.name == "mlp" and changed.model.options == {"hidden": [3]}
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
        (MINIMAL, ["optim.schedule=step"], "milestones"),
        (MINIMAL, ["sync.algorithm=rnig"], "sync.algorithm"),
        ("[data]\n", [], "train"),
        ("= 3", [], "TOML"),
    ],
)
def test_refused(tmp_path: Path, text: str, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, text, *overrides)
    assert words in str(caught.value) and caught.value.remedy


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "configs").glob("*.toml")), ids=lambda path: path.name)
def test_the_configurations_that_are_shipped_are_valid(path: Path) -> None:
    load_config(path)
