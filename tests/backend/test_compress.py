"""Packing of gradients, on every backend; and that a GPU makes the packets of the C kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.backend import ops_for
from mpidl.backend.contract.compress import BFLOAT16
from mpidl.backend.numpy_ops import NumpyOps
from mpidl.errors import BackendError


@pytest.fixture
def c_ops() -> NumpyOps:
    ops = NumpyOps()
    if ops.level == "none":
        pytest.skip("the C kernels were not built; plain NumPy draws and breaks ties otherwise")
    return ops


def zeros(ops: Any, n: int) -> Any:
    return ops.to_device(np.zeros(n, np.float32))


@pytest.mark.parametrize("n", [1, 7, 8, 512, 513, 2000])
def test_int8_is_near_and_unbiased(ops: Any, n: int, rng: np.random.Generator) -> None:
    host = rng.standard_normal(n).astype(np.float32)
    x, y = ops.to_device(host.copy()), zeros(ops, n)
    scales, q = np.empty(-(-n // 512), np.float32), np.empty(n, np.int8)
    peaks = [np.abs(part).max() / 127 for part in np.split(host, range(512, n, 512))]
    step = np.repeat(peaks, 512)[:n]
    total = np.zeros(n)
    for seed in range(400):
        ops.int8_pack(x, 512, seed, scales, q)
        ops.int8_unpack(scales, q, 512, y)
        assert (np.abs(ops.to_host(y) - host) <= step * 1.001).all()
        total += ops.to_host(y)
    # the mean of many roundings is the value
    assert (np.abs(total / 400 - host) <= 6 * step / np.sqrt(12 * 400) * 3).all()
    before = ops.to_host(y).copy()
    ops.int8_unpack(scales, q, 512, y, 1)
    np.testing.assert_allclose(ops.to_host(y), 2 * before)


def test_int8_poisons_a_block_that_is_not_finite(ops: Any) -> None:
    host = np.ones(1024, np.float32)
    host[3] = np.nan
    x, y = ops.to_device(host), zeros(ops, 1024)
    scales, q = np.empty(2, np.float32), np.empty(1024, np.int8)
    with np.errstate(invalid="ignore"):
        ops.int8_pack(x, 512, 1, scales, q)
        ops.int8_unpack(scales, q, 512, y)
    result = ops.to_host(y)
    assert np.isnan(result[:512]).any() and (np.abs(result[512:] - 1) < 0.01).all()


@pytest.mark.parametrize("n", [8, 512, 1000, 1536])
def test_sign(ops: Any, n: int, rng: np.random.Generator) -> None:
    host = rng.standard_normal(n).astype(np.float32)
    x, y = ops.to_device(host.copy()), zeros(ops, n)
    scales, bits = np.empty(-(-n // 512), np.float32), np.empty(-(-n // 8), np.uint8)
    ops.sign_pack(x, 512, scales, bits)
    ops.sign_unpack(scales, bits, 512, y)
    result = ops.to_host(y)
    np.testing.assert_array_equal(result >= 0, host >= 0)
    np.testing.assert_allclose(np.abs(result[:512]), np.abs(host[:512]).mean(), rtol=1e-5)


@given(st.integers(1, 3000), st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_topk(ops: Any, n: int, data: st.DataObject) -> None:
    k, seed = data.draw(st.integers(1, n)), data.draw(st.integers(0, 99))
    x = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    index, value = ops.topk(ops.to_device(x.copy()), k)
    assert len(index) == k and (np.diff(index) > 0).all()
    np.testing.assert_array_equal(value, x[index])
    rest = np.delete(np.abs(x), index)
    if rest.size:
        assert np.abs(value).min() >= rest.max() * (1 - 2**-7)  # told apart by 16 of 31 bits


def test_topk_feedback_selects_from_what_was_kept(ops: Any, rng: np.random.Generator) -> None:
    """The hint of earlier calls changes nothing but the time."""
    hint, kept = np.zeros(1, np.uint32), np.zeros(5000, np.float32)
    residual = zeros(ops, kept.size)
    for _ in range(4):
        host = rng.standard_normal(kept.size).astype(np.float32)
        kept += host
        x = ops.to_device(host)
        index, value = ops.topk_feedback(x, residual, 50, hint)
        for array in (x, residual):
            np.testing.assert_array_equal(ops.to_host(array), kept)
        wanted = ops.topk(ops.to_device(kept.copy()), 50)
        np.testing.assert_array_equal(index, wanted[0])
        np.testing.assert_array_equal(value, wanted[1])
        kept[index] = 0
        residual[...] = ops.to_device(kept.copy())


@pytest.mark.parametrize("seed", range(30))
def test_topk_packets_carry_any_indices(ops: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(10 ** rng.uniform(0, 6.3))
    index = np.unique(rng.integers(0, n, rng.integers(1, 30))).astype(np.int32)
    value = np.arange(1, len(index) + 1, dtype=np.float32)
    packet, y = np.full((2, len(index) + n // 65536 + 1), 7, np.uint16), zeros(ops, n)
    ops.topk_pack(index, value, packet)
    assert ops.topk_unpack(packet, y)
    np.testing.assert_array_equal(np.flatnonzero(ops.to_host(y)), index)
    np.testing.assert_array_equal(ops.to_host(y)[index], value)
    assert ops.topk_unpack(packet, y, -1) and not ops.to_host(y).any()
    value[0] = np.nan
    ops.topk_pack(index, value, packet)
    assert not ops.topk_unpack(packet, y) and np.isnan(ops.to_host(y)[index[0]])


@pytest.mark.parametrize("bad", [np.zeros(64), np.zeros(64, np.float32)[::2], np.zeros(64, ">f4")])
def test_arrays_that_c_would_read_wrongly_are_refused(bad: np.ndarray) -> None:
    ops = ops_for(bad)
    with pytest.raises(BackendError, match="kernel topk"):
        ops.topk(bad, 3)
    with pytest.raises(BackendError, match="kernel int8_pack"):
        ops.int8_pack(bad, 32, 0, np.zeros(2, np.float32), np.zeros(64, np.int8))
    with pytest.raises(BackendError, match="kernel add_and_keep"):
        ops.add_and_keep(np.zeros(bad.size, np.float32), bad)


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16])
def test_16_bit_floats_are_those_of_numpy(
    ops: Any, dtype: np.dtype, rng: np.random.Generator
) -> None:
    """Every one widened; roundings of ties, subnormal numbers, overflow, infinities and NaN."""
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    there = zeros(ops, every.size)
    ops.half_unpack(every, there)
    wide = ops.to_host(there)
    np.testing.assert_array_equal(wide, every.astype(np.float32))
    ordered = np.sort(wide[np.isfinite(wide)])
    ties = ((ordered[:-1].astype(np.float64) + ordered[1:]) / 2).astype(np.float32)
    special = np.array(
        [0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.9, 65520, 1e-8, -3e-5, 3.4e38, 1e-45],
        np.float32,
    )
    drawn = (rng.standard_normal(5001) * 10.0 ** rng.integers(-9, 6, 5001)).astype(np.float32)
    for x in (ties, special, drawn, drawn[:3]):
        packed = np.empty(x.size, dtype)
        ops.half_pack(ops.to_device(x.copy()), packed)
        with np.errstate(over="ignore"):
            wanted = x.astype(dtype)
        np.testing.assert_array_equal(packed.astype(np.float32), wanted.astype(np.float32))
        sums = ops.to_device(np.full(x.size, 2, np.float32))
        ops.half_unpack(packed, sums, -1)
        np.testing.assert_array_equal(ops.to_host(sums), 2 - wanted.astype(np.float32))


@pytest.mark.parametrize("n", [1, 8, 1024, 2500])
@pytest.mark.parametrize("broken", [False, True])
def test_a_gpu_makes_the_int8_packets_of_c(
    c_ops: Any, gpu_ops: Any, n: int, broken: bool, rng: np.random.Generator
) -> None:
    x, blocks = rng.standard_normal(n).astype(np.float32), -(-n // 512)
    if broken:
        x[n // 2] = np.inf
    results = []
    for ops in (c_ops, gpu_ops):
        scales, q = np.empty(blocks, np.float32), np.empty(n, np.int8)
        ops.int8_pack(ops.to_device(x.copy()), 512, 77, scales, q)
        y = ops.to_device(x.copy())
        ops.int8_unpack(scales, q, 512, y, -1)
        results.append((scales, q, ops.to_host(y)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    np.testing.assert_allclose(results[0][2], results[1][2], atol=1e-6)


@pytest.mark.parametrize("n", [1, 8, 300, 1024])
def test_a_gpu_makes_the_sign_packets_of_the_host(
    gpu_ops: Any, n: int, rng: np.random.Generator
) -> None:
    x, blocks = rng.standard_normal(n).astype(np.float32), -(-n // 128)
    results = []
    for ops in (NumpyOps(), gpu_ops):
        scales, bits = np.empty(blocks, np.float32), np.empty(-(-n // 8), np.uint8)
        ops.sign_pack(ops.to_device(x.copy()), 128, scales, bits)
        y = ops.to_device(x.copy())
        ops.sign_unpack(scales, bits, 128, y, 1)
        results.append((scales, bits, ops.to_host(y)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    np.testing.assert_array_equal(results[0][1], results[1][1])
    np.testing.assert_allclose(results[0][2], results[1][2], rtol=1e-5)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (100, 7), (5000, 50), (64, 64)])
def test_a_gpu_selects_what_c_selects(
    c_ops: Any, gpu_ops: Any, n: int, k: int, rng: np.random.Generator
) -> None:
    x = np.round(rng.standard_normal(n) * 4).astype(np.float32) / 4  # with ties
    wanted, got = c_ops.topk(x.copy(), k), gpu_ops.topk(gpu_ops.to_device(x.copy()), k)
    np.testing.assert_array_equal(wanted[0], got[0])
    np.testing.assert_array_equal(wanted[1], got[1])


def test_the_ops_of_an_array_leave_the_number_of_threads_alone() -> None:
    """The communication thread packs while another computes with threads of its own."""
    ops = NumpyOps(2)
    x = np.zeros(4, np.float32)
    ops.relu_forward(x, x)
    if ops._library is None:
        pytest.skip("the C kernels were not built")
    import ctypes

    ops_for(x).add_and_keep(x, x.copy())
    assert ctypes.c_int.in_dll(ops._library, "mpidl_threads").value == 2
