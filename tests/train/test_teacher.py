"""Teachers of every task, in their own units, and of parts of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from mpidl.comm.context import init
from mpidl.config import build_config
from mpidl.data.formats.source import Source
from mpidl.data.manifest import load_manifest, save_manifest
from mpidl.data.reader import Reader
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.errors import ConfigError, MpidlError
from mpidl.inference.predict import Predictor
from mpidl.task.distill import DistilledLoss
from mpidl.train.teacher import Taught
from mpidl.train.trainer import Trainer

COUNT = 24
MLP = {"name": "mlp", "hidden": [8]}


def write(folder: Path, arrays: dict[str, np.ndarray]) -> str:
    def read(low: int, high: int) -> dict[str, Any]:
        return {name: array[low:high] for name, array in arrays.items()}

    source = Source(COUNT, read)
    write_dataset(source, folder, WriteOptions(1), init(), lambda note: None)
    return str(folder)


def trainer(folder: Path, data: str, **sections: dict[str, Any]) -> Trainer:
    tree = {
        "data": {"train": data},
        "model": MLP,
        "train": {"output": str(folder), "max_steps": 2, "global_batch": 8},
    } | sections
    made = Trainer(build_config(tree, "test"), init(), observers=[])
    made.prepare()
    return made


def trained(folder: Path, data: str, **sections: dict[str, Any]) -> str:
    made = trainer(folder, data, **sections)
    made.run()
    made.close()
    return str(folder)


def test_a_teacher_of_other_data_keeps_its_units(tmp_path: Path, rng: np.random.Generator) -> None:
    """Inputs and targets of several channels, each with a normalization of its own."""
    sets, names = [], ("x", "label")
    for name, place, size in (("a", 0.0, 1.0), ("b", 50.0, 9.0)):
        x = place + size * rng.standard_normal((COUNT, 3)) * (1, 10, 100)
        y = np.stack((x.sum(axis=1), 7 - x[:, 0]), axis=1)
        arrays = dict(zip(names, (x.astype(np.float32), y.astype(np.float32)), strict=True))
        sets.append(write(tmp_path / name, arrays))
    teacher = trained(tmp_path / "teacher", sets[0])
    student = trainer(tmp_path / "student", sets[1], task={"distill": {"run": teacher}})
    step, task = student.parts.step, student.parts.task
    assert isinstance(step.loss, DistilledLoss) and student.parts.teacher is not None
    reader = Reader(sets[1], driver="posix")
    arrays = reader.read([(0, COUNT)])
    found = student.parts.teacher.outputs(student.parts.feed.inputs.features(arrays))
    own = task.predictions(np.asarray(found))["value"]
    wanted = Predictor(Path(teacher), init(), backend="numpy").predict(arrays)["value"]
    np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-3 * np.abs(wanted).max())
    student.run()
    student.close()
    reader.close()


def samples(task: str, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A data set and the model for a task."""
    if task == "language_model":
        tokens = rng.integers(0, 9, (COUNT, 9)).astype(np.uint16)
        return {"tokens": tokens}, {"name": "gpt", "width": 16, "depth": 1, "heads": 2}
    if task == "segmentation":
        x = rng.standard_normal((COUNT, 16, 16)).astype(np.float32)
        return {"x": x, "label": (x > 0).astype(np.uint8)}, {"name": "unet", "size": "tiny"}
    x = rng.standard_normal((COUNT, 6)).astype(np.float32)
    label = x[:, :3] > 0 if task == "multilabel" else x[:, 0] > 0
    return {"x": x, "label": label.astype(np.uint8)}, MLP


@pytest.mark.parametrize("task", ["classification", "multilabel", "segmentation"])
def test_a_model_that_is_its_teacher_learns_nothing_from_it(
    task: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    arrays, model = samples(task, rng)
    data = write(tmp_path / "data", arrays)
    sections: dict[str, Any] = {"model": model}
    if task == "segmentation":  # of parts of samples
        sections["augment"] = {"patch": {"size": [8, 8]}}
    teacher = trained(tmp_path / "teacher", data, task={"name": task}, **sections)
    distill = {"name": task, "distill": {"run": teacher, "weight": 1.0}}
    student = trainer(tmp_path / "student", data, task=distill, **sections)
    parts, known = student.parts, student.parts.teacher
    through = parts.step._passes.through
    assert known is not None and isinstance(through, Taught)
    parts.model.parameters.values[...] = known.model.parameters.values
    if parts.model.parameters.state.size:
        parts.model.parameters.state[...] = known.model.parameters.state
    (batch, *_) = next(parts.feed.epoch(0)).micro_batches
    assert batch is not None
    assert not parts.model.parameters.state.size  # else outputs in training would differ
    outputs, _ = through.forward(batch[0], train=True)
    found = parts.step.loss(outputs, batch[1], len(outputs))
    assert found.total == pytest.approx(0, abs=1e-6)
    assert np.abs(found.gradient).max() < 1e-6
    student.close()


def test_a_language_model_learns_from_another(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays, model = samples("language_model", rng)
    data = write(tmp_path / "data", arrays)
    manifest = load_manifest(Path(data))  # an archive of arrays does not say what tokens are
    tokens = replace(manifest.fields["tokens"], role="feature", classes=9, statistics=None)
    save_manifest(Path(data), replace(manifest, fields={"tokens": tokens}))
    teacher = trained(tmp_path / "teacher", data, model=model)
    wide = model | {"width": 32}
    run = trained(tmp_path / "student", data, model=wide, task={"distill": {"run": teacher}})
    assert Path(run, "checkpoints").is_dir()


def test_a_teacher_that_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.standard_normal((COUNT, 4, 16)).astype(np.float32)
    data = write(tmp_path / "waves", {"u": x})
    task = {"name": "rollout", "dimensions": 1, "distill": {"run": str(tmp_path / "none")}}
    with pytest.raises(ConfigError, match="'rollout' are not compared with those of a teacher"):
        trainer(tmp_path / "run", data, model={"name": "fno", "size": "tiny"}, task=task)
    arrays, _ = samples("classification", rng)
    labels = write(tmp_path / "labels", arrays)
    teacher = trained(tmp_path / "teacher", labels)
    other = write(tmp_path / "other", {"x": arrays["x"][:, :5], "label": arrays["label"]})
    with pytest.raises(MpidlError, match="trained for inputs"):
        trainer(tmp_path / "run", other, task={"distill": {"run": teacher}})
