"""Compression of gradients on a GPU, or through the stand-in where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.backend.kernels import load_library
from mpidl.compression import create


def on_gpu(ops: Any, host: np.ndarray) -> Any:
    return ops.to_device(host.copy())


@pytest.mark.parametrize("name", ["fp16", "bf16", "int8", "sign", "topk"])
def test_a_bucket_on_the_device_is_reduced_as_one_on_the_host(
    gpu_ops: Any, context: Any, name: str, rng: np.random.Generator
) -> None:
    from mpidl.collectives import Group

    options: dict[str, Any] = {"ratio": 0.1} if name == "topk" else {}
    group = Group(context.comm, name="device compression")
    host, device = create(name, seed=3, **options), create(name, seed=3, **options)
    for _ in range(3):  # residuals come back
        values = rng.standard_normal(5000).astype(np.float32)
        there = on_gpu(gpu_ops, values)
        host.reduce(values, group, "bucket")
        device.reduce(there, group, "bucket")
        if load_library() is not None or name != "int8":
            np.testing.assert_allclose(gpu_ops.to_host(there), values, rtol=1e-4, atol=1e-5)
    group.free()
