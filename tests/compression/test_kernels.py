"""The C kernels of compression, and their NumPy twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.backend.contract.compress import BFLOAT16, STEP_LIMIT
from mpidl.backend.numpy_ops import NumpyOps
from mpidl.errors import BackendError

HOST = NumpyOps()


@pytest.fixture(params=["c", "numpy"])
def twin(request: pytest.FixtureRequest) -> NumpyOps:
    """The C kernels, and plain NumPy."""
    ops = NumpyOps(use_c=request.param == "c")
    if request.param == "c" and ops.level == "none":
        pytest.skip("no C kernels")
    return ops


@pytest.mark.parametrize("n", [1, 7, 8, 512, 513, 2000])
def test_int8_is_near_and_unbiased(twin: NumpyOps, n: int, rng: np.random.Generator) -> None:
    x, blocks = rng.standard_normal(n).astype(np.float32), -(-n // 512)
    scales, q, total, y = (
        np.empty(blocks, np.float32),
        np.empty(n, np.int8),
        np.zeros(n),
        np.zeros(n, np.float32),
    )
    step = np.repeat([np.abs(part).max() / 127 for part in np.split(x, range(512, n, 512))], 512)[
        :n
    ]
    for seed in range(400):
        twin.int8_pack(x, 512, seed, scales, q)
        twin.int8_unpack(scales, q, 512, y)
        assert (np.abs(y - x) <= step * 1.001).all()
        total += y
    assert (
        np.abs(total / 400 - x) <= 6 * step / np.sqrt(12 * 400) * 3
    ).all()  # the mean of many roundings is the value
    before = y.copy()
    twin.int8_unpack(scales, q, 512, y, 1)
    np.testing.assert_allclose(y, 2 * before)


def test_int8_poisons_a_block_that_is_not_finite(twin: NumpyOps) -> None:
    x = np.ones(1024, np.float32)
    x[3] = np.nan
    scales, q, y = np.empty(2, np.float32), np.empty(1024, np.int8), np.zeros(1024, np.float32)
    with np.errstate(invalid="ignore"):
        twin.int8_pack(x, 512, 1, scales, q)
        twin.int8_unpack(scales, q, 512, y)
    assert np.isnan(y[:512]).any() and (np.abs(y[512:] - 1) < 0.01).all()


@pytest.mark.parametrize("n", [8, 512, 1000, 1536])
def test_sign(twin: NumpyOps, n: int, rng: np.random.Generator) -> None:
    x, blocks = rng.standard_normal(n).astype(np.float32), -(-n // 512)
    scales, bits, y = (
        np.empty(blocks, np.float32),
        np.empty(-(-n // 8), np.uint8),
        np.zeros(n, np.float32),
    )
    twin.sign_pack(x, 512, scales, bits)
    twin.sign_unpack(scales, bits, 512, y)
    np.testing.assert_array_equal(y >= 0, x >= 0)
    np.testing.assert_allclose(np.abs(y[:512]), np.abs(x[:512]).mean(), rtol=1e-5)


@given(st.integers(1, 3000), st.data())
@settings(max_examples=100, deadline=None)
def test_topk(n: int, data: st.DataObject) -> None:
    k, seed = data.draw(st.integers(1, n)), data.draw(st.integers(0, 99))
    x = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    index, value = HOST.topk(x, k)
    assert len(index) == k and (np.diff(index) > 0).all()
    np.testing.assert_array_equal(value, x[index])
    rest = np.delete(np.abs(x), index)
    if rest.size:
        assert np.abs(value).min() >= rest.max() * (1 - 2**-7)  # told apart by 16 of 31 bits


@pytest.mark.parametrize("seed", range(30))
def test_topk_packets_carry_any_indices(twin: NumpyOps, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(10 ** rng.uniform(0, 6.3))
    index = np.unique(rng.integers(0, n, rng.integers(1, 30))).astype(np.int32)
    value = np.arange(1, len(index) + 1, dtype=np.float32)
    packet, y = (
        np.full((2, len(index) + n // STEP_LIMIT + 1), 7, np.uint16),
        np.zeros(n, np.float32),
    )
    twin.topk_pack(index, value, packet)
    assert twin.topk_unpack(packet, y)
    np.testing.assert_array_equal(np.flatnonzero(y), index)
    np.testing.assert_array_equal(y[index], value)
    assert twin.topk_unpack(packet, y, -1) and not y.any()
    value[0] = np.nan
    twin.topk_pack(index, value, packet)
    assert not twin.topk_unpack(packet, y) and np.isnan(y[index[0]])


@pytest.mark.parametrize("bad", [np.zeros(64), np.zeros(64, np.float32)[::2], np.zeros(64, ">f4")])
def test_arrays_that_c_would_read_wrongly_are_refused(bad: np.ndarray) -> None:
    if HOST.level == "none":
        pytest.skip("the C kernels were not built")
    with pytest.raises(BackendError, match=r"C-contiguous|float32"):
        HOST.topk(bad, 3)
    with pytest.raises(BackendError, match=r"C-contiguous|float32"):
        HOST.int8_pack(bad, 32, 0, np.zeros(2, np.float32), np.zeros(64, np.int8))
    with pytest.raises(BackendError, match=r"C-contiguous|float32"):
        HOST.add_and_keep(np.zeros(bad.size, np.float32), bad)


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16])
def test_16_bit_floats_are_those_of_numpy(
    twin: NumpyOps, dtype: np.dtype, rng: np.random.Generator
) -> None:
    """Every float16 and bfloat16 widened; roundings of ties, subnormal numbers, overflow,
    infinities and NaN.
    """
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    wide = np.empty(every.size, np.float32)
    twin.half_unpack(every, wide)
    np.testing.assert_array_equal(wide, every.astype(np.float32))
    finite = wide[np.isfinite(wide)]
    ties = ((np.sort(finite)[:-1].astype(np.float64) + np.sort(finite)[1:]) / 2).astype(np.float32)
    special = np.array(
        [0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.9, 65520, 1e-8, -3e-5, 3.4e38, 1e-45],
        np.float32,
    )
    drawn = (rng.standard_normal(5001) * 10.0 ** rng.integers(-9, 6, 5001)).astype(np.float32)
    for x in (ties, special, drawn, drawn[:3]):
        packed = np.empty(x.size, dtype)
        twin.half_pack(x, packed)
        with np.errstate(over="ignore"):
            wanted = x.astype(dtype)
        np.testing.assert_array_equal(packed.astype(np.float32), wanted.astype(np.float32))
        sums = np.full(x.size, 2, np.float32)
        twin.half_unpack(packed, sums, -1)
        np.testing.assert_array_equal(sums, 2 - wanted.astype(np.float32))


def test_factors_of_another_rank_are_left_out() -> None:
    """They would keep that rank for ever, whatever the settings say."""
    from mpidl.compression.powersgd import PowerSGD

    factor = np.ones((5, 2), np.float32)
    for rank, kept in ((2, 1), (4, 0)):
        before, after = (PowerSGD(PowerSGD.Options(rank=count)) for count in (2, rank))
        before._right = {"bucket": [factor]}
        state = before.state()
        after.load_state(state)
        assert len(after._right) == kept and len(list(state.names())) == 1 - kept


@pytest.mark.parametrize("name", ["topk", "int8"])
def test_residuals_without_error_feedback_are_left_out(name: str) -> None:
    """They would come back when it is switched on again."""
    from mpidl.compression import create

    before, after = create(name), create(name, error_feedback=False)
    before.residuals.of("bucket", (5,), np.zeros(5, np.float32))[...] = 1
    state = before.state()
    after.load_state(state)
    assert list(state.names()) == ["residual:bucket"] and not list(after.state().own)
