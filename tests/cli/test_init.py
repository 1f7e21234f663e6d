"""`mpidl init`: what it writes, what it leaves alone, and what it refuses with which words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.cli.main import main
from mpidl.config import load_config

Run = Callable[..., tuple[int, dict[str, Any], str]]
Shard = Callable[..., Path]


@pytest.fixture
def init(capsys: pytest.CaptureFixture[str]) -> Run:
    """init(ARGUMENT, ...) -> (exit status, the JSON object, stderr)."""

    def run(*args: Any) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        status = main(["init", *map(str, args), "--json"])
        out, err = capsys.readouterr()
        assert "Traceback" not in err, err
        return status, json.loads(out.splitlines()[-1]) if status == 0 else {}, err

    return run


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shard:
    """shard(NAME, ARGUMENT, ..., field=array, ...) -> the folder of a data set, NAME."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, *args: str, **arrays: Any) -> Path:
        np.savez(f"{name}.npz", **arrays)
        assert main(["shard", f"{name}.npz", "--out", name, *args]) == 0
        return Path(name)

    return make


def vectors(count: int = 200, seed: int = 0) -> dict[str, Any]:
    """Vectors (5,) of three classes of very different size."""
    rng = np.random.default_rng(seed)
    y = rng.choice(3, count, p=(0.8, 0.15, 0.05))
    y[:3] = range(3)
    return {"x": rng.normal(y[:, None], 0.3, (count, 5)).astype(np.float32), "y": y}


def test_parts_of_a_split_become_training_and_test_data(init: Run, shard: Shard) -> None:
    folder = shard("flowers", "--split", "0.8,0.2", "--stratify", **vectors())
    status, found, err = init(folder, "--ranks", "2")
    assert status == 0, err
    assert found["task"] == "classification" and found["model"] == "mlp" and found["ranks"] == 2
    assert found["command"] == "mpirun -n 2 mpidl train run.toml"
    config = load_config("run.toml")
    assert config.data.train == "flowers/train" and config.data.test == "flowers/test"
    assert config.train.output == "runs/flowers"
    text = Path("run.toml").read_text()
    assert '# balance = "sqrt"' in text and "# class_weights = [" in text
    assert found["settings"] == tomllib.loads(text)
    lines = text.splitlines()
    for above, line in pairwise(lines):
        if " = " in line and not line.startswith("#"):
            assert above.startswith("# "), f"{line} has no reason"


def test_a_suggested_run_trains_at_once(init: Run, shard: Shard) -> None:
    folder = shard("flowers", "--split", "0.8,0.2", **vectors())
    assert init(folder, "--out", "mine.toml")[0] == 0
    assert main(["train", "mine.toml", "--set", "train.epochs=8"]) == 0
    assert Path("runs/mine/checkpoints").is_dir()
    assert init(folder, "--out", "mine.toml", "--overwrite")[0] == 0
    assert load_config("mine.toml").train.output == "runs/mine-2", "the run of before stays"


def test_a_file_that_exists_is_left_alone(init: Run, shard: Shard) -> None:
    folder = shard("flowers", **vectors())
    Path("run.toml").write_text("mine")
    status, _, err = init(folder)
    assert status == 1 and "run.toml: exists already" in err and "--overwrite" in err
    assert Path("run.toml").read_text() == "mine"
    assert init(folder, "--overwrite")[0] == 0
    load_config("run.toml")
    assert '# test = "FOLDER"' in Path("run.toml").read_text()


def test_several_data_sets_are_mixed(init: Run, shard: Shard) -> None:
    one, two = shard("one", **vectors()), shard("two", **vectors(90, 1))
    test = shard("test", **vectors(30, 2))
    status, found, err = init(one, two, "--test", test)
    assert status == 0, err
    assert found["settings"]["data"]["train"] == ["one", "two"]
    assert "290 samples" in Path("run.toml").read_text()


def test_masks_that_use_255_ignore_it(init: Run, shard: Shard) -> None:
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 3, (40, 16, 16), dtype=np.uint8)
    masks[:, 0] = 255
    images = rng.integers(0, 255, (40, 16, 16, 3), dtype=np.uint8)
    status, found, err = init(shard("cells", image=images, label=masks))
    assert status == 0, err
    assert found["task"] == "segmentation" and found["model"] == "unet"
    assert found["settings"]["task"] == {"name": "segmentation", "ignore": 255, "classes": 3}
    assert found["settings"]["augment"]["crop"]["mode"] == "reflect"


def test_real_numbers_that_look_like_classes_are_noticed(init: Run, shard: Shard) -> None:
    data = vectors()
    assert init(shard("a", x=data["x"], y=data["y"].astype(np.float32)))[1]["task"] == "regression"
    assert "few whole ones" in Path("run.toml").read_text()
    noisy = data["y"] + np.linspace(0, 1, 200)
    assert init(shard("b", x=data["x"], y=noisy.astype(np.float32)), "--overwrite")[0] == 0
    assert "few whole ones" not in Path("run.toml").read_text()


@pytest.mark.parametrize(
    ("change", "args", "words"),
    [
        ({"y": np.zeros(200, int)}, (), ("'y' has one class only", "--label NAME")),
        ({"y": np.full(200, 2.5)}, (), ("is 2.5 in all samples", "--label NAME")),
        ({"y": None}, (), ("no field that is a label", "shard the data again with --label NAME")),
        ({}, ("--ranks", "300"), ("300 ranks for 200 training sample(s)", "at most 128")),
        ({}, ("--ranks", "0"), ("--ranks: is 0", "choose 1")),
        ({}, ("--test", "data"), ("is training data too", "--split")),
        ({}, ("--test", "other"), ("other: the model takes 'x' of shape (5,)", "(4,)")),
        ({}, ("other",), ("'x' has shape (4,) here, but (5,) in data", "shard the data sets")),
        ({}, ("--label", "z"), ("has no field 'z'", "--label")),
        ({}, ("--label", "x"), ("'x' is both the feature and the label", "--label")),
        ({}, ("--task", "segmentation"), ("one number for a sample", "classification")),
        ({}, ("--out", "run.txt"), ("ends in .toml", "rename")),
        ({}, ("--out", "none/run.toml"), ("its folder does not exist", "make the folder")),
        ({}, ("missing",), ("missing/manifest.json: cannot read the manifest", "mpidl shard")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_cannot_be_trained_is_refused(
    init: Run, shard: Shard, change: dict[str, Any], args: tuple[str, ...], words: tuple[str, ...]
) -> None:
    arrays = {key: value for key, value in (vectors() | change).items() if value is not None}
    folder = shard("data", **arrays)
    if "other" in args:
        shard("other", **(vectors() | {"x": np.ones((200, 4), np.float32) * vectors()["x"][:, :4]}))
    status, _, err = init(folder, *args)
    assert status == 1 and "what to do:" in err, err
    for word in words:
        assert word in err, err
    assert not list(Path().glob("run.t*"))


def test_it_runs_where_there_is_no_mpi(shard: Shard) -> None:
    folder = shard("flowers", **vectors())
    code = (
        "import sys; sys.modules['mpi4py.MPI'] = None\n"
        "from mpidl.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "init", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={key: v for key, v in os.environ.items() if not key.startswith(("OMPI", "PMI"))},
    )
    assert done.returncode == 0, done.stderr
    assert "mpirun -n" in done.stdout and load_config("run.toml").model.name == "mlp"
