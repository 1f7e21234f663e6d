"""Every kernel of the table, on every backend, against plain NumPy in float64, over drawn shapes;
and that oracle itself
against derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.backend.contract.base import accumulator
from mpidl.backend.headers import codes, structs
from mpidl.backend.plain import PLAIN
from mpidl.backend.signature import CUDA, C
from mpidl.backend.signature import PLAIN as REFERENCE
from mpidl.backend.table import KERNELS
from tests.backend.cases import CASES, FREE, PACKED

FEW = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Args = list[Any]
Case = Callable[[np.random.Generator, int, int, int], Args]


def test_no_kernel_is_left_out() -> None:
    """gemm, and what only a GPU has, are parts of operations that are tested as such."""
    assert set(CASES) | FREE == {n for n, kernel in KERNELS.items() if REFERENCE in kernel.backends}


def test_the_codes_and_structs_are_those_of_the_headers() -> None:
    assert list(codes("ACT")) == ["relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"]
    assert list(codes("LOSS").values()) == list(range(5))
    kinds = {a.kind for kernel in KERNELS.values() for a in kernel.arguments if a.is_struct}
    assert kinds == set(structs())
    assert all(dtype.itemsize == 8 * len(dtype.names) for dtype in structs().values())


def has(ops: Any, name: str) -> bool:
    """Whether the backend has a kernel, or passes that do the same."""
    kernel = KERNELS[name]
    if ops.name == "cupy":
        return CUDA in kernel.backends or bool(kernel.passes)
    return (REFERENCE if ops.level == "none" else C) in kernel.backends


def on_device(ops: Any, name: str, args: Args, dtype: Any) -> Args:
    """The arguments on the backend; views into one array (k and v, say) stay views with the same
    strides.
    """
    moved: Args = []
    for argument, arg in zip(KERNELS[name].arguments, args, strict=True):
        if not isinstance(arg, np.ndarray) or argument.is_struct:
            moved.append(arg)
            continue
        kind = arg.dtype
        if argument.kind in ("real", "view"):
            kind = dtype
        elif argument.kind == "acc":
            kind = accumulator(dtype)
        if argument.kind == "view" and arg.base is not None and arg.base.ndim == arg.ndim + 1:
            whole = ops.to_device(np.zeros(arg.base.shape, kind))
            view = whole[:, :, 0]
            view[...] = ops.to_device(arg.astype(kind).copy())
            moved.append(view)
        else:
            moved.append(ops.to_device(np.array(arg, kind, order="C")))
    return moved


@pytest.mark.parametrize("name", sorted(CASES))
@given(
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 70),
    st.integers(1, 70),
    st.integers(1, 5),
    st.integers(0, 99),
)
@FEW
def test_agrees_with_plain_numpy(
    ops: Any, name: str, dtype: Any, n: int, m: int, k: int, seed: int
) -> None:
    if not has(ops, name):
        pytest.skip("this backend does it by other kernels")
    args = CASES[name](np.random.default_rng(seed), n, m, k)
    if dtype == np.float32:  # the oracle starts from the same numbers
        args = [
            a.astype(dtype).astype(a.dtype)
            if isinstance(a, np.ndarray) and a.dtype == np.float64 and a.base is None
            else a
            for a in args
        ]
    device = on_device(ops, name, args, dtype)
    ops.launch(name, *device)
    PLAIN[name](*args)
    single = dtype == np.float32 or KERNELS[name].real_position is None  # kernels of float32 only
    tolerance = 3e-4 if single else 1e-9
    for index, (wanted, got) in enumerate(zip(args, device, strict=True)):
        if isinstance(wanted, np.ndarray) and wanted.dtype.names is None:
            result = ops.to_host(got)
            np.testing.assert_allclose(
                result, wanted, rtol=tolerance, atol=tolerance, err_msg=f"argument {index}"
            )


@pytest.mark.parametrize(
    "name",
    sorted(n for n in set(CASES) - PACKED if KERNELS[n].family not in ("optim", "conv2d", "int8")),
)
@given(
    st.sampled_from([np.float16, ml_dtypes.bfloat16]),
    st.integers(0, 70),
    st.integers(1, 70),
    st.integers(1, 5),
    st.integers(0, 99),
)
@FEW
def test_16_bit_storage_rounds_only_what_is_stored(
    gpu_ops: Any, name: str, dtype: Any, n: int, m: int, k: int, seed: int
) -> None:
    """Results of kernels that store 16 bits differ from the oracle, started from the same numbers,
    by roundings of outputs.
    """
    args = CASES[name](np.random.default_rng(seed), n, m, k)
    device = on_device(gpu_ops, name, args, dtype)
    for index, (argument, arg) in enumerate(zip(KERNELS[name].arguments, device, strict=True)):
        is_real = argument.kind in ("real", "view", "acc")
        if is_real and isinstance(args[index], np.ndarray):
            args[index][...] = gpu_ops.to_host(arg).astype(np.float64)
    gpu_ops.launch(name, *device)
    PLAIN[name](*args)
    unit = float(ml_dtypes.finfo(dtype).eps)
    for index, (wanted, got) in enumerate(zip(args, device, strict=True)):
        if isinstance(wanted, np.ndarray) and wanted.dtype.names is None:
            result, size = gpu_ops.to_host(got).astype(np.float64), np.abs(wanted).max(initial=1)
            np.testing.assert_allclose(
                result, wanted, rtol=4 * unit, atol=4 * unit * size, err_msg=f"argument {index}"
            )


def derivative(
    function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, direction: np.ndarray
) -> np.ndarray:
    step = 1e-6
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


@pytest.mark.parametrize("kind", range(6))
def test_slopes_of_activations(kind: int, rng: np.random.Generator) -> None:
    def forward(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        PLAIN["act_forward"](x, y, x.size, kind)
        return y

    x, dx = rng.standard_normal((40, 3)), np.empty((40, 3))
    PLAIN["act_backward"](np.ones_like(x), x, forward(x), dx, x.size, kind)
    np.testing.assert_allclose(dx, derivative(forward, x, np.ones_like(x)), atol=1e-8)


@pytest.mark.parametrize("kind", range(5))
def test_slopes_of_losses(kind: int, rng: np.random.Generator) -> None:
    target = rng.random((5, 7))

    def forward(x: np.ndarray) -> np.ndarray:
        loss = np.empty(5)
        PLAIN["pair_loss"](x, target, loss, np.empty_like(x), 5, 7, 1.0, kind, 0.7)
        return loss

    x, dx, direction = rng.standard_normal((5, 7)), np.empty((5, 7)), rng.standard_normal((5, 7))
    PLAIN["pair_loss"](x, target, np.empty(5), dx, 5, 7, 1.0, kind, 0.7)
    np.testing.assert_allclose(
        (dx * direction).sum(axis=1), derivative(forward, x, direction), atol=1e-7
    )


def test_dropout_masks_are_those_of_philox() -> None:
    """The known answers of Random123 (Salmon et al., 2011) for philox4x32-10."""
    from mpidl.backend.plain.pointwise import philox

    assert [hex(word) for word in philox(4, 0, 0, 0)] == [
        "0x6627e8d5",
        "0xe169c58d",
        "0xbc57ac4c",
        "0x9b00dbd8",
    ]


def test_dropout_keeps_the_right_share_and_depends_on_everything(ops: Any) -> None:
    x = ops.to_device(np.ones(200_001, np.float32))
    masks = []
    for seed, step, stream in ((1, 0, 0), (1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)):
        y = ops.to_device(np.empty(200_001, np.float32))
        ops.dropout(x, y, 0.8, ops.to_device(np.array([seed, step, 0])), stream)
        masks.append(ops.to_host(y))
    assert abs((masks[0] > 0).mean() - 0.8) < 0.005
    np.testing.assert_array_equal(masks[0], masks[1])
    assert all((masks[0] != other).mean() > 0.2 for other in masks[2:])
