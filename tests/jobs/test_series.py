"""Series (steps, channels) through `mpidl train` on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_data_commands import configure, series
from tests.jobs.helpers import mpidl


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run configuration, its training data, and b.npz, sharded as test/."""
    np.savez(tmp_path / "a.npz", **series(300))
    np.savez(tmp_path / "b.npz", **series(61, 1))
    for name, out in (("a.npz", "data"), ("b.npz", "test")):
        assert mpidl(2, "shard", str(tmp_path / name), "--out", str(tmp_path / out)).status == 0
    return str(configure(tmp_path, "lstm", "units = 16\ndepth = 1", epochs=6))


def test_an_lstm_learns_series_on_one_and_two_ranks(tmp_path: Path, run: str) -> None:
    losses = []
    for ranks in (1, 2):
        folder = f"{tmp_path}/run{ranks}"
        settings = ("--set", f"train.output={folder}", "--set", f"data.test={tmp_path}/test")
        job = mpidl(ranks, "train", run, "--json", *settings)
        assert job.status == 0, job.err
        assert job.result["accuracy"] > 0.9 and job.result["evaluated_on"] == "test"
        losses.append(job.result["loss"])
    assert losses[0] == losses[1]
    found = mpidl(2, "evaluate", folder, "--json", "--data", str(tmp_path / "test")).result
    assert found["samples"] == 61 and found["accuracy"] > 0.9
    out = str(tmp_path / "p.npz")
    assert mpidl(2, "predict", folder, str(tmp_path / "b.npz"), "--out", out).status == 0
    assert (np.load(out)["label"] == series(61, 1)["y"]).mean() > 0.9
    settings = ("--set", f"train.output={folder}", "--set", "train.epochs=7")
    more = mpidl(2, "train", run, "--json", "--resume", *settings)
    assert more.status == 0 and more.result["epochs"] == 7, more.err
