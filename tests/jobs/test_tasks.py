"""Each task from one TOML file: it learns, is evaluated, predicts and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from mpidl.data.manifest import load_manifest, save_manifest
from mpidl.train import checkpoint as ckpt
from tests.jobs.helpers import mpidl

CONFIG = """
[data]
train = "{folder}/train"
test = "{folder}/test"
{data}
[model]
{model}
[task]
{task}
[optim]
name = "adam"
lr = {lr}
[train]
epochs = {epochs}
global_batch = 32
output = "{folder}/run"
"""


def shapes(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Images (16, 16) of a bright and a dark square under noise, and masks with a border."""
    x = 0.3 * rng.standard_normal((count, 16, 16))
    mask = np.zeros((count, 16, 16), np.uint8)
    for index, (i, j, k, m) in enumerate(rng.integers(1, 10, (count, 4))):
        for value, (row, column) in enumerate(((i, j), (k, m)), 1):
            mask[index, row : row + 5, column : column + 5] = value
    x += np.array([0.0, 1.5, -1.5])[mask]
    mask[:, 0] = mask[:, -1] = 255
    return {"image": x.astype(np.float32), "label": mask}


def tags(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Vectors (8,), and whether each of the first three is positive."""
    x = rng.standard_normal((count, 8)).astype(np.float32)
    return {"x": x, "label": (x[:, :3] > 0).astype(np.uint8)}


def tables(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two features of different units, and two targets that depend on both."""
    a = 1000 + 50 * rng.standard_normal((count, 3))
    b = 1e-3 * rng.standard_normal((count, 2))
    p = 7000 + a @ (1.0, -2.0, 0.5) + 3e4 * b[:, 0]
    q = 1e-2 * np.stack((a[:, 0] / 1000 + 90 * b[:, 1], 200 * b[:, 0]), axis=1)
    names = {"a": a, "b": b, "p": p[:, None], "q": q}
    return {name: array.astype(np.float32) for name, array in names.items()}


def words(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Windows of 17 tokens of 12, each of which mostly follows from the one before."""
    follower = np.random.default_rng(9).permutation(12)
    tokens = np.empty((count, 17), np.uint16)
    tokens[:, 0] = rng.integers(0, 12, count)
    for place in range(16):
        surprise = rng.random(count) < 0.1
        tokens[:, place + 1] = np.where(
            surprise, rng.integers(0, 12, count), follower[tokens[:, place]]
        )
    return {"tokens": tokens, "bytes": np.full(count, 32, np.uint32)}


def waves(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Trajectories (8, 16) of waves that move on a circle and become weaker, about 20."""
    k = np.arange(1, 4)
    place = 2 * np.pi * (np.arange(16) / 16 - 0.08 * np.arange(8)[:, None])
    weak = np.exp(-0.02 * k[:, None, None] ** 2 * np.arange(8)[:, None])
    modes = weak * np.stack(
        (np.cos(np.multiply.outer(k, place)), np.sin(np.multiply.outer(k, place)))
    )
    amplitudes = rng.standard_normal((count, 2, 3)) / k
    u = 20 + 4 * np.einsum("npk,pktx->ntx", amplitudes, modes)
    return {"u": u.astype(np.float32)}


TASKS: dict[str, dict[str, Any]] = {
    "segmentation": {
        "make": shapes, "model": 'name = "unet"\nsize = "tiny"',
        "task": "ignore = 255\nclasses = 3",
        "metric": ("mean_iou", 0.8), "outputs": {"label": (16, 16), "probability": (16, 16, 3)},
        "epochs": 6, "lr": 0.01,
    },
    "multilabel": {
        "make": tags, "model": 'name = "mlp"\nhidden = [32]', "metric": ("macro_f1", 0.9),
        "outputs": {"label": (3,), "probability": (3,)}, "epochs": 12, "lr": 0.01,
    },
    "regression": {
        "make": tables, "model": 'name = "mlp"\nhidden = [32]', "metric": ("r2", 0.9),
        "data": 'feature = ["a", "b"]\nlabel = ["p", "q"]', "outputs": {"value": (3,)},
        "epochs": 20, "lr": 0.01,
    },
    "language_model": {
        "make": words, "model": 'name = "gpt"\nwidth = 32\ndepth = 1\nheads = 2',
        "metric": ("accuracy", 0.0), "outputs": {"token": (16,)}, "epochs": 10, "lr": 0.01,
    },
    "rollout": {
        "make": waves, "model": 'name = "fno"\nwidth = 12\nmodes = 4\ndepth = 2',
        "task": "history = 2\nsteps = 3\ndimensions = 1", "metric": ("relative_l2", 0.03),
        "outputs": {"value": (6, 16)}, "epochs": 6, "lr": 0.01,
    },
}  # fmt: skip


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of a task whose data sets and configuration are in `tmp_path`."""
    name = str(request.param)
    case = TASKS[name]
    for seed, (part, count) in enumerate({"train": 480, "test": 95}.items()):
        np.savez(tmp_path / f"{part}.npz", **case["make"](count, np.random.default_rng(seed)))
        labels = ["--label", "p"] if name == "regression" else []
        source, out = str(tmp_path / f"{part}.npz"), str(tmp_path / part)
        job = mpidl(2, "shard", source, "--out", out, *labels, "--json")
        assert job.status == 0, job.err
        _finish(name, tmp_path / part)
    (tmp_path / "run.toml").write_text(
        CONFIG.format(
            folder=tmp_path,
            data=case.get("data", ""),
            model=case["model"],
            task=f'name = "{name}"\n' + case.get("task", ""),
            lr=case["lr"],
            epochs=case["epochs"],
        )
    )
    return name


def _finish(name: str, folder: Path) -> None:
    """Roles that an archive of arrays does not say."""
    manifest = load_manifest(folder)
    fields = dict(manifest.fields)
    if name == "language_model":
        fields["tokens"] = replace(fields["tokens"], role="feature", classes=12, statistics=None)
        fields["bytes"] = replace(fields["bytes"], role="other", statistics=None)
    save_manifest(folder, replace(manifest, fields=fields))


def test_a_task_learns_evaluates_predicts_and_resumes(task: str, tmp_path: Path) -> None:
    case, config = TASKS[task], str(tmp_path / "run.toml")
    job = mpidl(2, "train", config, "--json")
    assert job.status == 0, job.err
    name, least = case["metric"]
    if task == "language_model":
        assert 0.4 < job.result["bits_per_byte"] * 2 < 1.2, job.result  # entropy: 0.79 bits a token
    elif task == "rollout":
        assert job.result[name] < least, job.result  # of the waves: 0.2
    else:
        assert job.result[name] > least, job.result
    assert (tmp_path / "run" / "training.png").stat().st_size > 0
    found = [mpidl(n, "evaluate", str(tmp_path / "run"), "--json").result for n in (1, 2, 3)]
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for key, value in found[0].items():
            if isinstance(value, float):
                assert other[key] == pytest.approx(value, rel=1e-12), key
    picture = tmp_path / "confusion.png"
    job = mpidl(2, "evaluate", str(tmp_path / "run"), "--plot", str(picture))
    if "confusion_matrix" in found[0]:
        assert job.status == 0 and picture.stat().st_size > 10_000, job.err
    else:
        assert job.status != 0 and "has no confusion matrix" in job.err
    out = tmp_path / "p.npz"
    job = mpidl(3, "predict", str(tmp_path / "run"), str(tmp_path / "test"), "--out", str(out))
    assert job.status == 0, job.err
    with np.load(out) as archive:
        assert {key: archive[key].shape for key in archive} == {"sample": (95,)} | {
            key: (95, *shape) for key, shape in case["outputs"].items()
        }
    output = ("--set", f"train.output={tmp_path}/halves")
    first = mpidl(1, "train", config, *output, "--set", "train.max_steps=20")
    assert first.status == 0, first.err
    resumed = mpidl(2, "train", config, *output, "--resume")
    assert resumed.status == 0 and "resuming at step 20" in resumed.err, resumed.err
    ends = [
        ckpt.read(ckpt.list_checkpoints(tmp_path / run / "checkpoints")[0])
        for run in ("run", "halves")
    ]
    np.testing.assert_array_equal(ends[0].buffers["parameters"], ends[1].buffers["parameters"])
