"""Optional packages: everything else works without them; messages say how to install them."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.cli.main import main
from mpidl.errors import PlatformError
from mpidl.extras import EXTRAS, load_extra
from tests.conftest import ROOT

RUN = """
[data]
train = "{0}/data"
[model]
name = "mlp"
hidden = [8]
[train]
epochs = 1
global_batch = 20
output = "{0}/run"
"""


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """hide(PACKAGE, ...): as if it was not installed."""

    def hide(*packages: str) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
            monkeypatch.delitem(sys.modules, name)
        for package in packages:
            monkeypatch.setitem(sys.modules, package, None)

    return hide


@pytest.mark.parametrize("package", EXTRAS)
def test_a_missing_package_is_named_with_its_remedy(package: str, hide: Any) -> None:
    hide(package)
    with pytest.raises(PlatformError, match=f"drawing needs {package}") as caught:
        load_extra(package, "drawing")
    assert caught.value.remedy == f"pip install 'mpidl[{EXTRAS[package]}]'"


def test_each_optional_package_is_an_extra_and_no_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {"PIL": "pillow", "google": "protobuf", "grpc": "grpcio"}
    for package, extra in EXTRAS.items():
        name = names.get(package, package)
        assert any(line.startswith(name) for line in project["optional-dependencies"][extra])
        assert not any(line.startswith(name) for line in project["dependencies"])
    own = [line for line in project["optional-dependencies"]["dev"] if line.startswith("mpidl[")]
    dev = {extra for line in own for extra in line.removeprefix("mpidl[").rstrip("]").split(",")}
    assert set(EXTRAS.values()) <= dev
    lock = (ROOT / "requirements" / "dev.txt").read_text()
    assert all(f"\n{names.get(package, package).lower()}==" in lock for package in EXTRAS)


def test_a_run_needs_no_optional_package(
    tmp_path: Path, hide: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(*EXTRAS)
    y = np.arange(60) % 3
    np.savez(tmp_path / "a.npz", x=np.eye(3, dtype=np.float32)[y], y=y)
    (tmp_path / "run.toml").write_text(RUN.format(tmp_path))
    assert main(["shard", str(tmp_path / "a.npz"), "--out", str(tmp_path / "data")]) == 0
    assert main(["train", str(tmp_path / "run.toml")]) == 0
    err = capsys.readouterr().err
    assert "mpidl[tensorboard]" in err and "mpidl[plot]" in err
    assert "curves:" not in err and "done after 1 epoch(s)" in err
    assert (tmp_path / "run" / "metrics.jsonl").read_text()
    out = str(tmp_path / "p.csv")
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "a.npz"), "--out", out]) == 0
    for command, remedy in (
        (["export", str(tmp_path / "run"), str(tmp_path / "w.safetensors")], "mpidl[weights]"),
        (["export", str(tmp_path / "run"), str(tmp_path / "w.onnx")], "mpidl[onnx]"),
        (["plan", "--ranks", "2", "--plot", str(tmp_path / "p.png")], "mpidl[plot]"),
        (["shard", str(tmp_path / "data"), "--out", str(tmp_path / "images")], "mpidl[images]"),
    ):
        assert main(command) == 1
        err = capsys.readouterr().err
        assert f"pip install '{remedy}'" in err and "Traceback" not in err
    compare = ["compare", str(tmp_path / "run.toml"), "--strategies", "allreduce"]
    assert main([*compare, "--out", str(tmp_path / "compared")]) == 0
    assert "pip install 'mpidl[plot]'" in capsys.readouterr().err
    names = {path.name for path in (tmp_path / "compared").iterdir()}
    assert {"comparison.md", "comparison.json"} <= names and "comparison.png" not in names
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.npz",
        "compared",
        "data",
        "p.csv",
        "run",
        "run.toml",
    ]
