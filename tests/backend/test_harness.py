"""The host harness itself: it must notice the mistakes that a GPU would punish."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.standin.harness import HostModule

REVERSE = """
extern "C" __global__ void reverse(int *data, int n) {
    __shared__ int copy[64];
    const int i = threadIdx.x;
    copy[i] = data[i];
    %s
    data[i] = copy[n - 1 - i];
}
"""


def run(code: str, name: str, threads: int, *args: object, order: int = 0) -> None:
    module = HostModule(code)
    module.order = order
    module.get_function(name)((1,), (threads,), args)


@pytest.mark.parametrize("order", [0, 1, 7])
def test_threads_of_a_block_wait_for_each_other(order: int) -> None:
    data = np.arange(64, dtype=np.int32)
    run(REVERSE % "__syncthreads();", "reverse", 64, data, np.int32(64), order=order)
    np.testing.assert_array_equal(data, np.arange(64)[::-1])


def test_a_missing_barrier_gives_a_wrong_result_in_some_order() -> None:
    wrong = False
    for order in (0, 1, 7):
        data = np.arange(64, dtype=np.int32)
        run(REVERSE % "", "reverse", 64, data, np.int32(64), order=order)
        wrong |= not (data == np.arange(64)[::-1]).all()
    assert wrong


def test_a_barrier_that_not_all_threads_reach_is_an_error() -> None:
    code = (
        'extern "C" __global__ void bad(int *data, int n) { if (threadIdx.x < n) __syncthreads(); }'
    )
    with pytest.raises(AssertionError, match="returned while"):
        run(code, "bad", 8, np.zeros(8, np.int32), np.int32(4))


def test_shuffles_move_values_within_a_warp() -> None:
    code = (
        'extern "C" __global__ void f(int *d, int n) '
        "{ d[threadIdx.x] = __shfl_down_sync(0xffffffffu, d[threadIdx.x], n); }"
    )
    data = np.arange(64, dtype=np.int32)
    run(code, "f", 64, data, np.int32(1))
    wanted = np.arange(64) + 1
    wanted[[31, 63]] -= 1
    np.testing.assert_array_equal(data, wanted)


def test_arguments_of_the_wrong_type_are_refused() -> None:
    code = 'extern "C" __global__ void f(float *d, i64 n) { d[0] = n; }'.replace("i64", "int")
    with pytest.raises(AssertionError, match=r"float\* got"):
        run(code, "f", 1, np.zeros(1), np.int32(1))
    with pytest.raises(AssertionError, match="int got"):
        run(code, "f", 1, np.zeros(1, np.float32), 1)


def test_16_bit_conversions_are_those_of_numpy() -> None:
    code = """extern "C" __global__ void f(const float *x, REAL *y, float *z, int n) {
        for (int i = 0; i < n; i++) y[i] = x[i], z[i] = y[i];
    }"""
    every = np.arange(1 << 16, dtype=np.uint16)
    for real, dtype in (("f16", np.dtype(np.float16)), ("bf16", np.dtype(ml_dtypes.bfloat16))):
        numbers = every.view(dtype).astype(np.float32)
        with np.errstate(all="ignore"):
            between = np.nextafter(numbers, np.float32(np.inf)), (numbers[:-1] + numbers[1:]) / 2
        x = np.concatenate(
            [numbers, *between, [1e-8, 65519.0, 65520.0, 1e38, -0.0]], dtype=np.float32
        )
        y, z = np.empty(x.shape, dtype), np.empty_like(x)
        from mpidl.backend.kernels import cuda_source

        module = HostModule(cuda_source("embedding") + code, [f"-DREAL={real}", "-DACC=float"])
        module.get_function("f")((1,), (1,), (x, y, z, np.int32(len(x))))
        with np.errstate(over="ignore", invalid="ignore"):
            np.testing.assert_array_equal(y.astype(np.float32), x.astype(dtype).astype(np.float32))
        np.testing.assert_array_equal(z, y.astype(np.float32))


def test_kernels_give_the_same_in_every_thread_order() -> None:
    from mpidl.backend.kernels import cuda_source

    x = np.random.default_rng(0).standard_normal((37, 45)).astype(np.float32)
    results = []
    for order in (0, 1, 5):
        module, sums = (
            HostModule(cuda_source("pointwise"), ["-DREAL=float"]),
            np.empty(45, np.float32),
        )
        module.order = order
        module.get_function("column_sums")((2,), (32, 8), (x, sums, np.int64(37), np.int64(45)))
        results.append(sums)
    np.testing.assert_allclose(results[0], x.sum(axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
