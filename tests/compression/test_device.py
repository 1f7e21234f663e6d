"""Compression on a GPU (the stand-in where there is none): the packets of C, bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.backend import ops_for
from mpidl.backend.numpy_ops import NumpyOps
from mpidl.compression import create


def on_gpu(ops: Any, host: np.ndarray) -> Any:
    return ops.to_device(host.copy())


@pytest.mark.parametrize("n", [1, 8, 1024, 2500])
@pytest.mark.parametrize("broken", [False, True])
def test_int8(gpu_ops: Any, n: int, broken: bool, rng: np.random.Generator) -> None:
    x, blocks = rng.standard_normal(n).astype(np.float32), -(-n // 512)
    if broken:
        x[n // 2] = np.inf
    results = []
    for given in (x, on_gpu(gpu_ops, x)):
        scales, q = np.empty(blocks, np.float32), np.empty(n, np.int8)
        ops_for(given).int8_pack(given, 512, 77, scales, q)
        y = given.copy()
        ops_for(y).int8_unpack(scales, q, 512, y, -1)
        results.append((scales, q, gpu_ops.to_host(y) if given is not x else y))
    if NumpyOps().level != "none":  # NumPy draws other random numbers
        np.testing.assert_array_equal(results[0][0], results[1][0])
        np.testing.assert_array_equal(results[0][1], results[1][1])
        np.testing.assert_allclose(results[0][2], results[1][2], atol=1e-6)


@pytest.mark.parametrize("n", [1, 8, 300, 1024])
def test_sign(gpu_ops: Any, n: int, rng: np.random.Generator) -> None:
    x, blocks = rng.standard_normal(n).astype(np.float32), -(-n // 128)
    results = []
    for given in (x, on_gpu(gpu_ops, x)):
        scales, bits = np.empty(blocks, np.float32), np.empty(-(-n // 8), np.uint8)
        ops_for(given).sign_pack(given, 128, scales, bits)
        y = given.copy()
        ops_for(y).sign_unpack(scales, bits, 128, y, 1)
        results.append((scales, bits, gpu_ops.to_host(y) if given is not x else y))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    np.testing.assert_array_equal(results[0][1], results[1][1])
    np.testing.assert_allclose(results[0][2], results[1][2], rtol=1e-5)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (100, 7), (5000, 50), (64, 64)])
def test_topk_chooses_the_same(gpu_ops: Any, n: int, k: int, rng: np.random.Generator) -> None:
    x = np.round(rng.standard_normal(n) * 4).astype(np.float32) / 4  # with ties
    if NumpyOps().level == "none":
        pytest.skip("NumPy breaks ties in another way")
    given = on_gpu(gpu_ops, x)
    wanted, got = ops_for(x).topk(x, k), ops_for(given).topk(given, k)
    np.testing.assert_array_equal(wanted[0], got[0])
    np.testing.assert_array_equal(wanted[1], got[1])


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
        if NumpyOps().level != "none" or name != "int8":
            np.testing.assert_allclose(gpu_ops.to_host(there), values, rtol=1e-4, atol=1e-5)
    group.free()
