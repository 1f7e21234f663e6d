"""Kernels trust the addresses they get: what does not fit the table is refused in every call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.backend import binder
from mpidl.backend.binder import Binder
from mpidl.backend.numpy_ops import NumpyOps
from mpidl.backend.signature import C
from mpidl.backend.table import KERNELS
from mpidl.errors import BackendError
from tests.backend.test_table import CASES, has, on_device


def spoilt(ops: Any, arg: Any, how: str) -> Any:
    """An array like `arg` that the kernel would read wrongly."""
    xp = ops.xp
    if how == "dtype":
        return arg.astype(np.float32 if arg.dtype != np.float32 else np.float64)
    if how == "short":
        return arg.reshape(-1)[:-1].copy()
    if how == "long":
        return xp.concatenate([arg.reshape(-1), arg.reshape(-1)[:1]])
    if how == "view":
        wide = xp.zeros((arg.size, 2), arg.dtype)
        return wide[:, 0]
    assert how == "nothing"
    return None


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_argument_of_every_kernel_is_checked(ops: Any, name: str) -> None:
    if not has(ops, name):
        pytest.skip("this backend does it by other kernels")
    args = on_device(ops, name, CASES[name](np.random.default_rng(1), 7, 6, 3), np.float32)
    kernel = KERNELS[name]
    for index, argument in enumerate(kernel.arguments):
        if argument.is_struct:
            with pytest.raises(BackendError, match=f"{argument.kind} as '{argument.name}'"):
                ops.launch(name, *args[:index], np.zeros(9, np.int64), *args[index + 1 :])
        if not argument.is_array or args[index] is None or args[index].size < 2:
            continue
        spoils = ["dtype"]
        if argument.kind != "view":
            spoils += ["view"]
        if argument.factors is not None:
            spoils += ["short", "long"]
        if not argument.optional:
            spoils += ["nothing"]
        for how in spoils:
            if how == "dtype" and index == kernel.real_position:
                continue  # this one says which dtype the others must have
            bad = [*args[:index], spoilt(ops, args[index], how), *args[index + 1 :]]
            with pytest.raises(BackendError, match=f"kernel {name}.*{argument.name}"):
                ops.launch(name, *bad)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_every_array_has_a_size_or_a_reason(name: str) -> None:
    """Sizes that no argument tells: tables, slots, and views, all checked by their callers."""
    unchecked = {
        a.name
        for a in KERNELS[name].arguments
        if a.is_array and a.kind != "view" and a.factors is None
    }
    assert unchecked <= {"table", "dtable"} or name in ("slot_squares", "slot_scale"), unchecked


@pytest.mark.skipif(binder._pointers is None, reason="the compiled binder was not built")
@pytest.mark.parametrize("name", sorted(name for name in CASES if C in KERNELS[name].backends))
def test_the_compiled_binder_agrees_with_python(name: str) -> None:
    """Over good arguments, and over arguments that were exchanged, cut, or made views at random."""
    rng = np.random.default_rng(5)
    real = np.dtype(np.float64)
    bound = Binder(name, KERNELS[name], real)
    ops = NumpyOps()
    for trial in range(40):
        n, m, k = (int(v) for v in rng.integers(1, (9, 9, 6)))
        args = on_device(ops, name, CASES[name](rng, n, m, k), real)
        if trial:
            where = int(rng.integers(len(args)))
            if isinstance(args[where], np.ndarray) and args[where].size > 1:
                args[where] = spoilt(
                    ops, args[where], str(rng.choice(["dtype", "short", "long", "view", "nothing"]))
                )
            elif isinstance(args[where], (int, np.integer)):
                args[where] = int(args[where]) + 1
        try:
            bound.check(tuple(args))
            wanted = tuple(a.ctypes.data if isinstance(a, np.ndarray) else a for a in args)
        except BackendError:
            wanted = None
        assert binder._pointers(bound._program, tuple(args)) == wanted


def test_swapped_bytes_and_odd_addresses_are_refused() -> None:
    bound = Binder("relu_forward", KERNELS["relu_forward"], np.dtype(np.float32))
    good, raw = np.zeros(4, np.float32), np.zeros(17, np.uint8)
    bound.pointers((good, good, 4))
    with pytest.raises(BackendError, match="'x'"):
        bound.pointers((good.astype(">f4"), good, 4))
    with pytest.raises(BackendError, match="'out'"):
        bound.pointers((good, [1.0] * 4, 4))
    with pytest.raises(BackendError, match="3 arguments"):
        bound.pointers((good, good))
    odd = raw[1:].view(np.float32)
    assert binder._pointers is None or binder._pointers(bound._program, (odd, good, 4)) is None
    with pytest.raises(BackendError, match="aligned array as 'x'"):
        bound.pointers((odd, good, 4))


def test_a_field_of_records_is_not_read_at_other_places() -> None:
    """Its strides are no multiple of its elements, and products are told strides in elements."""
    records = np.ones((4, 4), [("value", np.float32), ("flag", np.uint8)])["value"]
    out = np.zeros((4, 4), np.float32)
    with pytest.raises(BackendError, match="aligned"):
        NumpyOps().matmul(records, np.eye(4, dtype=np.float32), out)


def test_operations_with_ways_of_their_own_check_too(ops: Any) -> None:
    if ops.name == "cupy":
        pytest.skip("CuPy checks products and views itself")
    x, w, y = (np.zeros(shape, np.float32) for shape in ((4, 6), (6, 3), (4, 3)))
    with pytest.raises(BackendError, match="cannot multiply"):
        ops.matmul(x, w, y[:3])
    with pytest.raises(BackendError, match="kernel gemm"):
        ops.matmul(x.astype(np.float64), w, y)
    with pytest.raises(BackendError, match="kernel maxpool2d_forward"):
        ops.maxpool2d_forward(
            np.zeros((1, 4, 4, 2), np.float32), np.zeros((1, 2, 2, 1), np.float32), 2
        )
    args = [
        np.zeros((2, 3), np.float32),
        np.array([0, 3]),
        *(np.zeros(s, np.float32) for s in (2, (2, 3))),
    ]
    with pytest.raises(BackendError, match="label 3"):
        ops.softmax_cross_entropy(*args, np.zeros(2, np.uint8), 1.0)
    with pytest.raises(BackendError, match="ids from"):
        ops.embedding_forward(
            np.zeros((5, 2), np.float32), np.array([[0, 5]]), np.zeros((1, 2, 2), np.float32)
        )


def own_calls(ops: Any) -> dict[str, tuple[Any, list[Any]]]:
    """Operations that do not go through `launch`: a call, and its arrays."""
    rng, real = np.random.default_rng(3), np.float32

    def arrays(*shapes: Any) -> list[Any]:
        return [ops.to_device(rng.standard_normal(shape).astype(real)) for shape in shapes]

    labels, hit = ops.to_device(rng.integers(0, 3, 4)), ops.to_device(np.zeros(4, np.uint8))
    x, loss, dx = arrays((4, 3), 4, (4, 3))
    rates = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "nesterov": False}
    images = arrays((2, 4, 4, 3), (2, 2, 2, 3))
    return {
        "bias_act": (lambda y, b: ops.bias_act(y, b, relu=True), arrays((4, 3), 3)),
        "relu_forward": (ops.relu_forward, arrays((4, 3), (4, 3))),
        "relu_backward": (ops.relu_backward, arrays((4, 3), (4, 3), (4, 3))),
        "column_sums": (ops.column_sums, arrays((4, 3), 3)),
        "scale_u8": (lambda a, out: ops.scale_u8(a, out, 1.0, 0.0), [hit.copy(), *arrays(4)]),
        "softmax_cross_entropy": (
            lambda *a: ops.softmax_cross_entropy(*a, 1.0),
            [x, labels, loss, dx, hit],
        ),
        "sgd_step": (lambda *a: ops.sgd_step(*a, **rates), arrays(5, 5, 5)),
        "maxpool2d_forward": (lambda a, out: ops.maxpool2d_forward(a, out, 2), images),
        "maxpool2d_backward": (
            lambda *a: ops.maxpool2d_backward(*a, 2, relu=False),
            [images[1], *images, images[0].copy()],
        ),
    }


@pytest.mark.parametrize("name", sorted(own_calls(NumpyOps())))
def test_every_argument_of_operations_with_kernels_of_their_own(ops: Any, name: str) -> None:
    call, given = own_calls(ops)[name]
    call(*given)
    for index, array in enumerate(given):
        gaps = ops.xp.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)[..., ::2]
        other = array.astype(np.float64 if array.dtype == np.float32 else np.float32)
        tells = name == "scale_u8" and index == 1  # the dtype that is wanted
        for bad in [gaps] if tells else [gaps, other]:
            with pytest.raises(BackendError):
                call(*given[:index], bad, *given[index + 1 :])


def attention_arrays(xp: Any, n: int, t: int, heads: int, dim: int) -> tuple[list[Any], Any, Any]:
    views = [xp.zeros((n, t, heads, dim), np.float32) for _ in range(3)]
    return views, xp.zeros((n, t, heads, dim), np.float32), xp.zeros((n, heads, t), np.float32)


def test_attention_refuses_what_it_would_read_wrongly(ops: Any) -> None:
    views, out, lse = attention_arrays(ops.xp, 2, 5, 2, 4)
    ops.attention_forward(*views, out, lse, scale=1.0, causal=False)
    for index, bad in (
        (0, ops.xp.zeros((2, 5, 4, 2), np.float32).transpose(0, 1, 3, 2)),
        (1, ops.xp.zeros((2, 5, 2, 8), np.float32)[..., ::2]),
        (2, ops.xp.zeros((2, 4, 2, 4), np.float32)),
        (2, ops.xp.zeros((2, 5, 3, 2, 4), np.float32)[:, :, 0]),
    ):
        given = [*views[:index], bad, *views[index + 1 :]]
        with pytest.raises(BackendError, match="attention"):
            ops.attention_forward(*given, out, lse, scale=1.0, causal=False)


def test_heads_that_a_gpu_cannot_hold_are_refused(gpu_ops: Any) -> None:
    """attention.cu keeps a head in 8 registers of 32 lanes."""
    views, out, lse = attention_arrays(gpu_ops.xp, 1, 2, 1, 257)
    with pytest.raises(BackendError, match="at most 256"):
        gpu_ops.attention_forward(*views, out, lse, scale=1.0, causal=False)
    views, out, lse = attention_arrays(gpu_ops.xp, 1, 2, 1, 256)
    gpu_ops.attention_forward(*views, out, lse, scale=1.0, causal=False)


def test_threads_and_winograd_belong_to_an_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making another backend leaves those of this one alone."""
    ops = NumpyOps(2)
    if ops._library is None:
        pytest.skip("the C kernels were not built")
    x = np.zeros(4, np.float32)

    def threads(of: NumpyOps) -> int:
        of.relu_forward(x, x)
        assert of._library is not None
        import ctypes

        return ctypes.c_int.in_dll(of._library, "mpidl_threads").value

    assert threads(ops) == 2
    monkeypatch.setenv("MPIDL_WINOGRAD", "off")
    other = NumpyOps()
    assert threads(ops) == 2 and threads(other) == 1 and threads(ops) == 2
