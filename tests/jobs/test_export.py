"""A trained run as an ONNX file, executed by onnxruntime, against `mpidl predict`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from mpidl.data.hdf5 import open_file
from tests.jobs.conftest import blobs
from tests.jobs.helpers import mpidl


def test_an_exported_run_predicts_as_the_run_itself(run_folder: Path) -> None:
    run, out, path = (str(run_folder / name) for name in ("run", "p.h5", "model.onnx"))
    assert mpidl(2, "train", str(run_folder / "run.toml"), "--set", "train.epochs=1").status == 0
    job = mpidl(2, "export", run, path, "--json")
    assert job.status == 0 and job.result["parameters"] > 100, job.err
    outputs = ("--output", "predictions", "--output", "raw")
    assert mpidl(2, "predict", run, str(run_folder / "test"), "--out", out, *outputs).status == 0

    session = onnxruntime.InferenceSession(path)
    images = blobs(101, 1)["image"]  # as they are stored, bytes
    label, probability, raw = session.run(["label", "probability", "raw"], {"image": images})
    with open_file(Path(out)) as file:
        assert np.ptp(file["raw"][...]) > 1
        np.testing.assert_allclose(raw, file["raw"][...], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(probability, file["probability"][...], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(label, file["label"][...])
    about = session.get_modelmeta().custom_metadata_map
    assert about["task"] == "classification" and about["model"] == "cnn"
    refused = mpidl(2, "export", run, str(run_folder / "model.pt"))
    assert refused.status == 1 and refused.err.count("unknown kind of file") == 1, refused.err
