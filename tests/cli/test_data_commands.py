"""`mpidl shard`, `train`, `evaluate`, `predict` and `export` in one process, on data of users."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mpidl.cli.main import main
from mpidl.data import Reader
from mpidl.data.hdf5 import h5py
from mpidl.data.manifest import load_manifest
from mpidl.train.checkpoint import read
from tests.data.test_dataset import edit_manifest

CONFIG = """
[data]
train = "{folder}/data"
[model]
name = "{model}"
{options}
[optim]
name = "adam"
lr = 0.01
[train]
epochs = {epochs}
global_batch = 20
output = "{folder}/run"
"""
Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def mpidl(capsys: pytest.CaptureFixture[str]) -> Run:
    """mpidl(ARGUMENT, ...) -> (exit status, the JSON object, stderr)."""

    def run(*args: Any) -> tuple[int, dict[str, Any], str]:
        status = main([*map(str, args), "--json"])
        out, err = capsys.readouterr()
        assert "Traceback" not in err, err
        return status, json.loads(out.splitlines()[-1]) if status == 0 else {}, err

    return run


def series(samples: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Waves (12, 2) of three frequencies with random phases."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, samples)
    phase = np.arange(12) * (y[:, None] + 1) * 0.6 + rng.uniform(0, 6.28, (samples, 1))
    return {"x": np.stack([np.sin(phase), np.cos(phase)], -1).astype(np.float32), "y": y}


def configure(
    folder: Path, model: str = "mlp", options: str = 'size = "tiny"', epochs: int = 1
) -> Path:
    path = folder / "run.toml"
    path.write_text(CONFIG.format(folder=folder, model=model, options=options, epochs=epochs))
    return path


def vectors(samples: int = 60) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, samples)
    return {"x": rng.normal(y[:, None], 0.3, (samples, 5)).astype(np.float32), "y": y}


def table(path: Path, words: tuple[str, ...], label: str, samples: int = 60) -> None:
    """A CSV file of `vectors` with a word for each class."""
    arrays = vectors(samples)
    lines = [",".join(["a", "b", label, "c", "d", "e"])]
    for x, y in zip(arrays["x"], arrays["y"], strict=True):
        numbers = [f"{value:.4f}" for value in x]
        lines.append(",".join([*numbers[:2], words[y], *numbers[2:]]))
    path.write_text("\n".join(lines) + "\n")


@contextmanager
def full_disk(limit: int = 10_000) -> Iterator[None]:
    """A file-size limit stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_table_with_words_from_the_first_command_to_the_last(tmp_path: Path, mpidl: Run) -> None:
    """The README's way: --label with a name of the user's own."""
    table(tmp_path / "iris.csv", ("setosa", "versicolor", "virginica"), "species")
    status, made, err = mpidl(
        "shard", tmp_path / "iris.csv", "--out", tmp_path / "data", "--label", "species"
    )
    assert status == 0 and made["notes"] == [], err
    field = load_manifest(tmp_path / "data").fields["label"]
    assert field.role == "label" and field.class_names == ("setosa", "versicolor", "virginica")
    status, result, err = mpidl("train", configure(tmp_path, epochs=12))
    assert status == 0 and result["accuracy"] > 0.8
    assert (
        result["evaluated_on"] == "training"
        and "training accuracy" in err
        and "test accuracy" not in err
    )
    out = tmp_path / "p.csv"
    status, _, err = mpidl("predict", tmp_path / "run", tmp_path / "iris.csv", "--out", out)
    assert status == 1 and "--label species" in err
    status, result, err = mpidl(
        "predict", tmp_path / "run", tmp_path / "iris.csv", "--out", out, "--label", "species"
    )
    assert status == 0 and result["samples"] == 60, err


def test_options_of_a_format_on_the_command_line(tmp_path: Path, mpidl: Run) -> None:
    (tmp_path / "table.dat").write_text("1,2,0\n3,4,1\n5,6,0\n7,8,1\n")
    shard = ("shard", tmp_path / "table.dat", "--out", tmp_path / "data", "--label", "column3")
    status, _, err = mpidl(*shard)
    assert status == 1 and "--format" in err and "csv" in err
    status, made, err = mpidl(*shard, "--format", "csv", "--no-header")
    assert status == 0 and made["samples"] == 4 and made["notes"] == [], err
    status, made, err = mpidl(*shard, "--format", "csv", "--overwrite")
    assert status == 0 and "the first line is no header" in made["notes"][0], err
    np.savez(tmp_path / "a.npz", **vectors())
    status, _, err = mpidl("shard", tmp_path / "a.npz", "--out", tmp_path / "b", "--header")
    assert status == 1 and "--header: the format npz has no such option, only csv" in err


def test_the_way_out_of_a_label_with_an_unusual_name(tmp_path: Path, mpidl: Run) -> None:
    """Each message leads to the next command, none in a circle."""
    arrays = vectors()
    np.savez(tmp_path / "a.npz", x=arrays["x"], category=arrays["y"])
    shard = ("shard", tmp_path / "a.npz", "--out", tmp_path / "data", "--overwrite")
    status, made, err = mpidl(*shard)
    assert (
        status == 0 and "one of category" in made["notes"][0] and "note: no field is a label" in err
    )
    status, _, err = mpidl("train", configure(tmp_path))
    assert status == 1 and "category (other)" in err and "--label NAME" in err
    status, _, err = mpidl("train", configure(tmp_path), "--set", "data.label=category")
    assert status == 1 and "--label category" in err
    assert mpidl(*shard, "--label", "category")[0] == 0
    assert mpidl("train", configure(tmp_path), "--set", "data.label=category")[0] == 0
    assert mpidl("train", configure(tmp_path), "--overwrite")[0] == 0


def test_real_numbers_as_targets_do_not_become_classes(tmp_path: Path, mpidl: Run) -> None:
    rows = np.random.default_rng(0).normal(size=(600, 3))
    (tmp_path / "a.csv").write_text(
        "a,b,target\n" + "".join(f"{a:.5f},{b:.5f},{c:.5f}\n" for a, b, c in rows)
    )
    status, made, err = mpidl("shard", tmp_path / "a.csv", "--out", tmp_path / "data")
    assert status == 0 and "real numbers" in made["notes"][0] and "note:" in err
    named = ("--set", "task.name=classification")
    status, _, err = mpidl("train", configure(tmp_path), *named)
    assert status == 1 and "real numbers" in err and "regression" in err and "--label" not in err
    status, found, _ = mpidl("train", configure(tmp_path))
    assert status == 0 and "accuracy" not in found


def test_channels_first_images_on_the_command_line(tmp_path: Path, mpidl: Run) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((30, 3, 8, 9), np.uint8), y=np.arange(30) % 3)
    shard = ("shard", tmp_path / "a.npz", "--out", tmp_path / "data")
    status, _, err = mpidl(*shard)
    assert status == 1 and "--channels-first" in err and not (tmp_path / "data").exists()
    status, made, _ = mpidl(*shard, "--channels-first")
    assert status == 0 and made["fields"]["x"] == "uint8[8, 9, 3] (feature)"
    assert "is 0 in all samples" in made["notes"][0]
    status, _, err = mpidl("train", configure(tmp_path, "cnn"))
    assert status == 0 and "is 0 in all samples" in err, "said again, not silently divided by 1"


def test_series_are_trained_evaluated_and_predicted(tmp_path: Path, mpidl: Run) -> None:
    np.savez(tmp_path / "a.npz", **series(300))
    np.savez(tmp_path / "b.npz", **series(60, 1))
    mpidl("shard", tmp_path / "a.npz", "--out", tmp_path / "data")
    mpidl("shard", tmp_path / "b.npz", "--out", tmp_path / "test")
    run = configure(tmp_path, "lstm", "units = 16\ndepth = 1", epochs=6)
    status, result, err = mpidl("train", run, "--set", f"data.test={tmp_path}/test")
    assert status == 0 and result["accuracy"] > 0.9 and result["evaluated_on"] == "test", err
    assert "test accuracy" in err.splitlines()[-2]
    assert read(tmp_path / "run" / "checkpoints" / "best.h5").meta.inputs["layout"] == "series"
    status, found, _ = mpidl("evaluate", tmp_path / "run", "--data", tmp_path / "test")
    assert status == 0 and found["accuracy"] == pytest.approx(
        max(found["accuracy"], result["accuracy"])
    )
    status, found, _ = mpidl(
        "predict", tmp_path / "run", tmp_path / "b.npz", "--out", tmp_path / "p.npz"
    )
    labels = np.load(tmp_path / "p.npz")["label"]
    assert status == 0 and (labels == series(60, 1)["y"]).mean() > 0.9


def test_the_layout_of_a_field_can_be_chosen(tmp_path: Path, mpidl: Run) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "a.npz", x=rng.normal(size=(60, 12, 8)).astype(np.float32), y=np.arange(60) % 3
    )
    mpidl("shard", tmp_path / "a.npz", "--out", tmp_path / "data")
    assert mpidl("train", configure(tmp_path, "cnn"))[0] == 0, (
        "for a cnn (12, 8) is a gray image, as ever"
    )
    assert (
        read(tmp_path / "run" / "checkpoints" / "step-00000003.h5").meta.inputs["layout"] == "image"
    )
    for model, layout, words in [
        ("cnn", "series", "'cnn' takes images"),
        ("lstm", "image", "'lstm' takes series"),
    ]:
        status, _, err = mpidl(
            "train", configure(tmp_path, model), "--set", f"data.layout={layout}", "--overwrite"
        )
        assert status == 1 and words in err and "set data.layout" in err


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        ("cnn", (20,), "'cnn' takes images (height, width, channels)"),
        ("lstm", (20,), "'lstm' takes series (steps, channels)"),
        ("lstm", (8, 8, 3), "'lstm' takes series"),
        ("unet", (8, 8, 3), "the task 'classification' takes (3,)"),
        ("gpt", (20,), "the task 'classification' takes (3,)"),
    ],
)
def test_models_that_do_not_fit_the_data(
    tmp_path: Path, mpidl: Run, model: str, shape: tuple[int, ...], words: str
) -> None:
    """unet and gpt used to read labels beyond the end of their memory."""
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "a.npz", x=rng.normal(size=(60, *shape)).astype(np.float32), y=np.arange(60) % 3
    )
    mpidl("shard", tmp_path / "a.npz", "--out", tmp_path / "data")
    status, _, err = mpidl("train", configure(tmp_path, model))
    assert status == 1 and words in err and "what to do:" in err


def test_a_label_for_each_step_is_refused(tmp_path: Path, mpidl: Run) -> None:
    np.savez(tmp_path / "a.npz", x=series(60)["x"], y=np.zeros((60, 12), np.int64))
    mpidl("shard", tmp_path / "a.npz", "--out", tmp_path / "data")
    status, _, err = mpidl("train", configure(tmp_path, "lstm"))
    assert status == 1 and "(12,)" in err and "one class for each sample" in err


def test_an_impossible_number_of_classes_in_a_manifest(tmp_path: Path, mpidl: Run) -> None:
    np.savez(tmp_path / "a.npz", **vectors())
    mpidl("shard", tmp_path / "a.npz", "--out", tmp_path / "data")
    for classes in (-1, 0, 10**12):
        edit_manifest(lambda tree, classes=classes: tree["fields"]["y"].update(classes=classes))(
            tmp_path / "data"
        )
        status, _, err = mpidl("train", configure(tmp_path))
        assert status == 1 and "classes" in err and "manifest.json" in err and "what to do:" in err


@pytest.fixture
def trained(tmp_path: Path, mpidl: Run) -> Path:
    """A folder with a.npz, data/ and a finished run/."""
    np.savez(tmp_path / "a.npz", **vectors(3000))
    mpidl("shard", tmp_path / "a.npz", "--out", tmp_path / "data")
    assert mpidl("train", configure(tmp_path, options="hidden = [64, 64]"))[0] == 0
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ("export", "{0}/run", "{0}/w.safetensors"),
        ("export", "{0}/run", "{0}/w.onnx"),
        ("predict", "{0}/run", "{0}/a.npz", "--out", "{0}/w.csv"),
        ("predict", "{0}/run", "{0}/a.npz", "--out", "{0}/w.h5"),
        ("plan", "--plot", "{0}/w.png"),
        ("shard", "{0}/a.npz", "--out", "{0}/w"),
        ("shard", "{0}/a.npz", "--out", "{0}/w", "--shared"),
    ],
    ids=lambda command: " ".join(command[:1] + command[-1:]),
)
def test_a_full_disk_leaves_nothing_and_says_so(
    trained: Path, mpidl: Run, command: tuple[str, ...]
) -> None:
    before = sorted(trained.iterdir())
    with full_disk():
        status, _, err = mpidl(*(part.format(trained) for part in command))
    assert (
        status == 1 and "mpidl: error" in err and "File too large" in err and "ulimit -f" in err
    ), err
    assert "train.output" not in err and sorted(trained.iterdir()) == before


def test_curves_that_cannot_be_drawn_do_not_fail_a_run(trained: Path, mpidl: Run) -> None:
    (trained / "run" / "training.png").unlink()
    (trained / "run" / "training.png").mkdir()
    status, result, err = mpidl("train", configure(trained), "--overwrite")
    assert status == 0 and result["checkpoint"] and "the curves could not be drawn" in err


@pytest.mark.parametrize("name", ["w.pt", "w", "none/w.safetensors", "run"])
def test_export_refuses_other_kinds_of_files(trained: Path, mpidl: Run, name: str) -> None:
    status, _, err = mpidl("export", trained / "run", trained / name)
    assert (
        status == 1 and "what to do:" in err and (".safetensors" in err or "make the folder" in err)
    )
    assert not (trained / "w.pt").exists()


def test_the_dtype_of_inputs(trained: Path, mpidl: Run) -> None:
    """As stored, where the training data are at hand; else float32, or as it is chosen."""

    def dtype(*options: str) -> str:
        assert mpidl("export", trained / "run", trained / "w.onnx", *options)[0] == 0
        (given,) = onnxruntime.InferenceSession(trained / "w.onnx").get_inputs()
        assert given.name == "x" and given.shape[0] == "batch"
        return str(given.type)

    assert dtype() == "tensor(float)"
    assert dtype("--input-dtype", "uint8") == "tensor(uint8)"
    edit_manifest(lambda tree: tree["fields"]["x"].update(dtype="float64"))(trained / "data")
    assert dtype() == "tensor(double)"
    (trained / "data").rename(trained / "elsewhere")
    assert dtype() == "tensor(float)"
    weights = trained / "w.safetensors"
    status, _, err = mpidl("export", trained / "run", weights, "--input-dtype", "uint8")
    assert status == 1 and "--input-dtype" in err and not weights.exists()


def test_what_is_no_checkpoint_is_not_to_be_sharded_again(trained: Path, mpidl: Run) -> None:
    (trained / "notes.h5").write_text("hello " * 100)
    status, _, err = mpidl("evaluate", trained / "notes.h5", "--data", trained / "data")
    assert status == 1 and "not an HDF5 file" in err and "shard" not in err


def test_words_that_would_be_numbered_otherwise(tmp_path: Path, mpidl: Run) -> None:
    """A test table without one of the classes numbers the others from 0 again.

    Its accuracy would be wrong.
    """
    table(tmp_path / "a.csv", ("cat", "dog", "emu"), "label")
    table(tmp_path / "b.csv", ("dog", "emu", "emu"), "label")
    for name, out in (("a.csv", "data"), ("b.csv", "test")):
        assert mpidl("shard", tmp_path / name, "--out", tmp_path / out)[0] == 0
    run = ("train", configure(tmp_path), "--overwrite", "--set")
    status, _, err = mpidl(*run, f"data.test={tmp_path}/test")
    assert status == 1 and "class 0 of 'label' is 'dog' here, but 'cat' in the training data" in err
    assert mpidl(*run, f"data.test={tmp_path}/data")[0] == 0
    status, _, err = mpidl("evaluate", tmp_path / "run", "--data", tmp_path / "test")
    assert status == 1 and "class 0 of 'label' is 'dog' here" in err, (
        "the checkpoint knows the names"
    )
    assert mpidl("evaluate", tmp_path / "run", "--data", tmp_path / "data")[0] == 0


def test_several_features_and_labels_of_a_table(tmp_path: Path, mpidl: Run) -> None:
    """Named columns become the vectors "features" and "label", in the order of their names."""
    rows = "".join(f"{n},2,{n / 4},1,x\n" for n in range(9))
    (tmp_path / "a.csv").write_text("a,b,c,d,word\n" + rows)
    shard = ("shard", tmp_path / "a.csv", "--out", tmp_path / "t", "--overwrite")
    names = ("--label", "c", "--label", "d", "--feature", "b", "--feature", "a")
    assert mpidl(*shard, *names)[0] == 0
    with Reader(tmp_path / "t") as reader:
        found = reader.read([(0, 9)])
    assert found["features"].tolist() == [[2, n] for n in range(9)]
    assert found["label"].tolist() == [[n / 4, 1] for n in range(9)]
    assert load_manifest(tmp_path / "t").fields["label"].statistics is not None
    for more, words in (
        (("--feature", "z"), "no column 'z'; its columns are a, b, c, d, word"),
        (("--feature", "a", "--label", "a"), "'a' is both a feature and a label"),
        (("--feature", "a", "--label", "b", "--label", "word"), "'word' holds words"),
        (("--feature", "word", "--label", "b"), "'x' in column 'word'"),
    ):
        status, _, err = mpidl(*shard, *more)
        assert status == 1 and words in err and "what to do:" in err


def test_look_takes_the_label_of_an_hdf5_file(tmp_path: Path, mpidl: Run) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["kind"] = np.zeros((30, 2), np.float32), np.arange(30) % 3
    status, found, err = mpidl("look", tmp_path / "a.h5", "--label", "kind")
    assert status == 0, err
    assert found["parts"][0]["fields"]["kind"]["role"] == "label"
