"""Regressions from the command line: fields and vectors of real values as labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpidl.observe.metrics import read_metrics
from mpidl.train import checkpoint as ckpt
from tests.jobs.helpers import Job, mpidl

CONFIG = """
[data]
train = "{folder}/train"
test = "{folder}/test"
[model]
name = "unet"
size = "tiny"
[loss]
name = "mse"
[optim]
name = "adam"
lr = 0.01
[train]
epochs = 6
global_batch = 16
log_every = 1
output = "{folder}/run"
"""


def fields(samples: int, seed: int) -> dict[str, np.ndarray]:
    """Smooth periodic fields (16, 16), and a soft sign of them (16, 16, 1)."""
    rng = np.random.default_rng(seed)
    noise = np.fft.rfft2(rng.standard_normal((samples, 16, 16)))
    noise[:, 4:-3] = 0
    noise[:, :, 4:] = 0
    x = np.fft.irfft2(noise)
    x /= x.std()
    mean = (x + np.roll(x, 1, 1) + np.roll(x, 1, 2)) / 3
    return {
        "field": x.astype(np.float32),
        "target": np.tanh(3 * mean)[..., None].astype(np.float32),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of fields, made by the command line, and the configuration of a run."""
    for name, samples, seed in (("train", 320, 0), ("test", 48, 1)):
        np.savez(tmp_path / f"{name}.npz", **fields(samples, seed))
        arguments = ("--out", str(tmp_path / name), "--label", "target", "--json")
        job = mpidl(2, "shard", str(tmp_path / f"{name}.npz"), *arguments)
        assert job.status == 0 and "loss.name" in job.err, job.err
    (tmp_path / "run.toml").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path


def train(folder: Path, ranks: int, *args: str) -> Job:
    return mpidl(ranks, "train", str(folder / "run.toml"), "--json", *args)


def test_a_field_is_learned_evaluated_and_predicted(folder: Path) -> None:
    job = train(folder, 2)
    assert job.status == 0, job.err
    target = fields(48, 1)["target"]
    assert "accuracy" not in job.result and job.result["evaluated_on"] == "test"
    assert job.result["rmse"] ** 2 < 0.1 * target.var() and job.result["r2"] > 0.9, job.result
    records = read_metrics(folder / "run" / "metrics.jsonl")
    assert all("accuracy" not in record for record in records)
    assert (folder / "run" / "training.png").stat().st_size > 0
    best = min(record["loss"] for record in records if record["kind"] == "evaluation")
    saved = ckpt.read(folder / "run" / "checkpoints" / ckpt.BEST).meta
    assert saved.metrics["loss"] == best and saved.best_score == -best
    for ranks in (1, 3):
        found = mpidl(ranks, "evaluate", str(folder / "run"), "--json").result
        assert found["loss"] == pytest.approx(best) and found["r2"] > 0.9
    run, out = str(folder / "run"), folder / "p.npz"
    job = mpidl(3, "predict", run, str(folder / "test"), "--out", str(out), "--json")
    assert job.status == 0 and job.result == {"samples": 48, "out": str(out)}, job.err
    with np.load(out) as archive:
        values = archive["value"]
    assert values.shape == target.shape and values.dtype == np.float32
    assert float(((values - target) ** 2).mean()) == pytest.approx(found["rmse"] ** 2, rel=1e-4)


def test_a_regression_is_resumed_bit_for_bit(folder: Path) -> None:
    """On another number of ranks, in the middle of an epoch."""
    assert train(folder, 2).status == 0
    output = ("--set", f"train.output={folder}/halves")
    assert train(folder, 1, *output, "--set", "train.max_steps=50").status == 0
    resumed = train(folder, 2, *output, "--resume")
    assert resumed.status == 0 and "resuming at step 50" in resumed.err, resumed.err
    ends = [
        ckpt.read(ckpt.list_checkpoints(folder / name / "checkpoints")[0])
        for name in ("run", "halves")
    ]
    assert ends[0].meta.metrics == ends[1].meta.metrics
    for name, array in ends[0].buffers.items():
        np.testing.assert_array_equal(array, ends[1].buffers[name], err_msg=name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("loss.name=cross_entropy",), "compares classes"),
        (("loss.name=msee",), "did you mean 'mse'?"),
        (("loss.name=mse", "data.label=field"), "both the feature and the label"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, settings: tuple[str, ...], words: str) -> None:
    job = train(folder, 2, *(word for each in settings for word in ("--set", each)))
    assert job.status == 1 and words in job.err and job.err.count("what to do") == 1, job.err
