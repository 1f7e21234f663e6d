"""A quantized model stands in for its run: evaluate, predict, and what refuses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpidl.data.hdf5 import open_file
from tests.jobs.helpers import mpidl


def test_a_quantized_model_stands_in_for_its_run(run_folder: Path) -> None:
    run, out, test = (str(run_folder / name) for name in ("run", "small.h5", "test"))
    job = mpidl(2, "train", str(run_folder / "run.toml"), "--set", "train.epochs=1")
    assert job.status == 0, job.err
    job = mpidl(2, "quantize", run, "--out", out, "--storage", "float16", "--json")
    assert job.status == 0, job.err
    made = job.result
    assert made["int8"] == ["conv2d1.weight", "conv2d2.weight", "dense1.weight", "dense2.weight"]
    assert made["before"]["accuracy"] == mpidl(2, "evaluate", run, "--json").result["accuracy"]
    assert abs(made["after"]["accuracy"] - made["before"]["accuracy"]) <= 0.02  # 2 of 101 samples
    assert made["after"]["loss"] == pytest.approx(made["before"]["loss"], rel=0.02)
    assert made["after"]["loss"] != made["before"]["loss"]
    assert made["speedup"] > 0 and Path(out).stat().st_size == made["after"]["bytes"]

    evaluated = mpidl(1, "evaluate", out, "--json").result
    assert evaluated["loss"] == pytest.approx(made["after"]["loss"], rel=1e-6)
    files = []
    for ranks in (1, 2):
        table = run_folder / f"{ranks}.h5"
        job = mpidl(ranks, "predict", out, test, "--out", str(table), "--output", "raw")
        assert job.status == 0, job.err
        files.append(table.read_bytes())
    assert files[0] == files[1]
    exact = run_folder / "exact.h5"
    assert mpidl(1, "predict", run, test, "--out", str(exact), "--output", "raw").status == 0
    with open_file(exact) as wanted, open_file(run_folder / "1.h5") as got:
        scale = np.abs(wanted["raw"][...]).max()
        np.testing.assert_allclose(got["raw"][...], wanted["raw"][...], atol=0.05 * scale)

    for what, arguments in {
        "only predicts": ("train", str(run_folder / "run.toml"), "--resume-from", out),
        "quantized already": ("quantize", out, "--out", str(run_folder / "again.h5")),
        "exists already": ("quantize", run, "--out", out),
        "takes a share": ("quantize", run, "--out", str(run_folder / "x.h5"), "--prune", "1"),
        "unknown suffix": ("quantize", run, "--out", str(run_folder / "x.bin")),
    }.items():
        refused = mpidl(2, *arguments)
        assert refused.status == 1 and what in refused.err, refused.err
