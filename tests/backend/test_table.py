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
from mpidl.backend.contract.compress import STEP_LIMIT
from mpidl.backend.contract.conv import ConvGeometry, PoolGeometry
from mpidl.backend.headers import codes, structs
from mpidl.backend.plain import PLAIN
from mpidl.backend.signature import CUDA, C
from mpidl.backend.signature import PLAIN as REFERENCE
from mpidl.backend.table import KERNELS

FEW = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Args = list[Any]
Case = Callable[[np.random.Generator, int, int, int], Args]


def normal(g: np.random.Generator, *shape: int) -> np.ndarray:
    return g.standard_normal(shape)


def act(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    return [normal(g, n, m) * 3, normal(g, n, m), n * m, k]


def act_back(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    x, y = normal(g, n, m) * 3, np.empty((n, m))
    PLAIN["act_forward"](x, y, n * m, k)
    return [normal(g, n, m), x, y, normal(g, n, m), n * m, k]


def row_norm(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    beta = normal(g, m) if k % 2 else None
    return [
        normal(g, n, m) + 2,
        normal(g, m),
        beta,
        normal(g, n, m),
        normal(g, n),
        normal(g, n),
        n,
        m,
        1e-5,
        k % 2,
    ]


def row_norm_back(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    x, gamma, _, y, mean, rstd, *rest = args = row_norm(g, n, m, k)
    PLAIN["row_norm_forward"](*args)
    return [normal(g, n, m), x, gamma, mean, rstd, y, n, m, rest[-1]]


def row_norm_parameters(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    dy, x, gamma, mean, rstd, *_ = row_norm_back(g, n, m, k)
    return [dy, x, mean, rstd, gamma, normal(g, m) if k % 2 else None, n, m]


def affine(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    residual = normal(g, k, n, m) if k % 2 else None
    return [
        normal(g, k, n, m),
        normal(g, k, m),
        normal(g, k, m),
        residual,
        normal(g, k, n, m),
        k,
        n,
        m,
        k % 3 == 0,
    ]


def dots(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    y = normal(g, k, n, m) if k % 2 else None
    return [
        normal(g, k, n, m),
        normal(g, k, n, m),
        y,
        *(normal(g, k, m) for _ in range(3)),
        k,
        n,
        m,
    ]


def softmax_back(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    y = normal(g, n, m)
    PLAIN["softmax_forward"](y.copy(), y, n, m, k % 2)
    return [normal(g, n, m), y, normal(g, n, m), n, m, k % 2]


def attention(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    b, heads, tq = n % 3, k, 1 + m % 50
    tk, dim = (tq if k % 2 else tq + n % 7), 1 + m % 33
    q, both = normal(g, b, tq, heads, dim), normal(g, b, tk, 2, heads, dim)
    out, lse = normal(g, b, tq, heads, dim), normal(g, b, heads, tq)
    numbers = (b, heads, tq, tk, dim, heads * dim, 2 * heads * dim)
    sizes = np.array(numbers, structs()["attention_geometry"])
    return [q, both[:, :, 0], both[:, :, 1], out, lse, sizes, 0.3, k % 2]


def attention_back(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    args = attention(g, n, m, k)
    PLAIN["attention_forward"](*args)
    q, key = args[0], args[1]
    both = normal(g, *key.shape[:2], 2, *key.shape[2:])
    return [
        normal(g, *q.shape),
        *args[:5],
        normal(g, *q.shape),
        both[:, :, 0],
        both[:, :, 1],
        *args[5:],
    ]


def conv_geometry(g: np.random.Generator) -> ConvGeometry:
    kernel, stride, dilation = (tuple(int(v) for v in g.integers(1, 4, 3)) for _ in range(3))
    pad = tuple(int(g.integers(0, k + 1)) for k in kernel)
    size = tuple(
        int(d * (k - 1) + 1 + g.integers(0, 5)) for k, d in zip(kernel, dilation, strict=True)
    )
    return ConvGeometry(size, 6, 4, kernel, stride, pad, dilation, int(g.choice([1, 2])))  # type: ignore[arg-type]


def columns(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    geometry, images = conv_geometry(g), n % 3
    width = geometry.taps * 6 // geometry.groups
    pixels = images * int(np.prod(geometry.out_size))
    return [
        normal(g, images, *geometry.size, 6),
        normal(g, pixels, width),
        geometry.record(images, geometry.groups - 1),
    ]


def pool(
    g: np.random.Generator, n: int, m: int, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size, stride = 1 + k % 4, 1 + n % 3
    geometry = PoolGeometry(
        size + n % 9, size + m % 9, 1 + m % 5, size, stride, int(g.integers(0, size // 2 + 1))
    )
    images = n % 3
    x = normal(g, images, geometry.height, geometry.width, geometry.channels)
    return (
        x,
        normal(g, images, geometry.out_height, geometry.out_width, geometry.channels),
        geometry.record(images),
    )


def maxpool(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    x, y, sizes = pool(g, n, m, k)
    return [x, y, np.zeros(y.shape, np.int64), sizes]


def maxpool_back(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    x, y, place, sizes = args = maxpool(g, n, m, k)
    PLAIN["maxpool_forward"](*args)
    return [normal(g, *y.shape), place, x, sizes]


def tiles(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    geometry = PoolGeometry(k + n % 9, k + m % 9, 1 + m % 5, k, k, 0)
    images = n % 3
    x = normal(g, images, geometry.height, geometry.width, geometry.channels)
    y = normal(g, images, geometry.out_height, geometry.out_width, geometry.channels)
    return [x, y, geometry.record(images)]


def tiles_back(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    x, y, sizes = args = tiles(g, n, m, k)
    PLAIN["maxpool2d_forward"](*args)
    return [normal(g, *y.shape), x, y, normal(g, *x.shape), sizes, m % 2]


def conv2d(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    """Input, weights, bias or None, output, sizes; 3 x 3 with 16 channels goes by Winograd."""
    kernel, stride = (3, 3) if k == 5 else (1 + n % 4, k), 1 if k == 5 else 1 + m % 2
    pad = int(g.integers(0, min(kernel)))
    size = (1, kernel[0] + n % 9, kernel[1] + m % 9)
    channels = (16, 32) if k == 5 else (1 + n % 5, 1 + m % 7)
    full = (1, *kernel), (1, stride, stride), (0, pad, pad)
    geometry = ConvGeometry(size, *channels, *full)
    images = n % 3
    x = normal(g, images, *size[1:], channels[0])
    w, b = normal(g, *kernel, *channels) * 0.3, normal(g, channels[1]) if m % 2 else None
    y = normal(g, images, *geometry.out_size[1:], channels[1])
    return [x, w, b, y, geometry.record(images)]


def conv2d_input(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    x, w, _, dy, sizes = conv2d(g, n, m, k)
    while sizes["sh"] > 1 or sizes["ph"] >= min(sizes["kh"], sizes["kw"]):
        x, w, _, dy, sizes = conv2d(g, n, m + 1, k)
    return [dy, w, x, sizes]


def conv2d_weights(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    x, w, b, dy, sizes = conv2d(g, n, m, k)
    return [x, dy, w, b, sizes]


def cross_entropy(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    labels, hit = g.integers(-1, m, n), np.zeros(n, np.uint8)
    return [
        normal(g, n, m) * 3,
        labels,
        normal(g, n),
        normal(g, n, m),
        hit,
        n,
        m,
        0.5,
        0.1 * (k % 2),
    ]


def blocks(g: np.random.Generator, n: int, m: int, k: int) -> tuple[np.ndarray, int, int]:
    x = normal(g, n * m + 1).astype(np.float32)
    block = 8 * k
    return x, block, -(-x.size // block)


def sign_codes(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    x, block, count = blocks(g, n, m, k)
    bits = np.zeros(-(-x.size // 8), np.uint8)
    return [x, np.zeros(count, np.float32), bits, x.size, block, count, bits.size]


def sign_values(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    x, scales, bits, *sizes = args = sign_codes(g, n, m, k)
    PLAIN["sign_pack"](*args)
    return [scales, bits, x, *sizes, k % 3 - 1]


def int8_values(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    x, block, count = blocks(g, n, m, k)
    scales, q = g.random(count).astype(np.float32), g.integers(0, 256, x.size).astype(np.uint8)
    return [scales, q, x, x.size, block, count, k % 3 - 1]


def packet(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    index = np.unique(g.integers(0, 10 * STEP_LIMIT, n + 1)).astype(np.int32)
    value = normal(g, index.size).astype(np.float32)
    room = index.size + 10 + k
    return [index, value, np.ones((2, room), np.uint16), index.size, room]


def unpacked(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    *_, code, _, room = args = packet(g, n, m, k)
    PLAIN["topk_pack"](*args)
    y = normal(g, 10 * STEP_LIMIT).astype(np.float32)
    return [code, y, np.zeros(1, np.uint8), room, y.size, k % 3 - 1]


def half(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    x = normal(g, n * m).astype(np.float32)
    return [x, np.zeros(x.size, np.uint16), x.size, k % 2]


def widened(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    x, code, *rest = args = half(g, n, m, k)
    PLAIN["half_pack"](*args)
    return [code, x, *rest, m % 3 - 1]


def residual(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    values, kept = (normal(g, n * m).astype(np.float32) for _ in range(2))
    return [values, kept, values.size]


def adam(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    size = n * m
    state = [normal(g, size), normal(g, size), normal(g, size), normal(g, size) ** 2]
    return [*state, size, 0.01, 0.9, 0.99, 1e-3, 0.1, 0.3, 0.4, k % 2]


def slots(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    edges = np.sort(g.integers(0, n * m + 1, 2 * k))
    return [normal(g, n * m), edges[0::2].copy(), edges[1::2].copy(), normal(g, k), k]


CASES: dict[str, Case] = {
    "bias_act": lambda g, n, m, k: [normal(g, n, m), normal(g, m), n, m, k % 2],
    "relu_forward": lambda g, n, m, k: [normal(g, n, m), normal(g, n, m), n * m],
    "relu_backward": lambda g, n, m, k: [*(normal(g, n, m) for _ in range(3)), n * m],
    "column_sums": lambda g, n, m, k: [normal(g, n, m), normal(g, m), n, m],
    "scale_u8": lambda g, n, m, k: [
        g.integers(0, 256, (n, m)).astype(np.uint8),
        normal(g, n, m),
        n * m,
        1 / 255,
        -0.5,
    ],
    "softmax_cross_entropy": cross_entropy,
    "sgd_step": lambda g, n, m, k: [*adam(g, n, m, k)[:3], n * m, 0.1, 0.9, 0.01, k % 2],
    "act_forward": act,
    "act_backward": act_back,
    "dropout": lambda g, n, m, k: [
        normal(g, n, m),
        normal(g, n, m),
        n * m,
        [0.5, 0.9, 1.0][k % 3],
        np.array([7 << 33 | 5, n, m]),
        k,
    ],
    "row_norm_forward": row_norm,
    "row_norm_backward": row_norm_back,
    "row_norm_parameters": row_norm_parameters,
    "segment_moments": lambda g, n, m, k: [
        normal(g, k, n, m) + 3,
        normal(g, k, m),
        normal(g, k, m),
        k,
        n,
        m,
    ],
    "segment_affine": affine,
    "segment_dots": dots,
    "segment_dx": lambda g, n, m, k: [
        normal(g, k, n, m),
        normal(g, k, n, m),
        *(normal(g, k, m) for _ in range(3)),
        normal(g, k, n, m),
        k,
        n,
        m,
    ],
    "softmax_forward": lambda g, n, m, k: [normal(g, n, m) * 5, normal(g, n, m), n, m, k % 2],
    "softmax_backward": softmax_back,
    "pair_loss": lambda g, n, m, k: [
        normal(g, n, m),
        g.random((n, m)),
        normal(g, n),
        normal(g, n, m),
        n,
        m,
        0.5,
        k % 5,
        0.7,
    ],
    "embedding_forward": lambda g, n, m, k: [
        normal(g, 9, m),
        g.integers(0, 9, n),
        normal(g, n, m),
        n,
        m,
    ],
    "embedding_backward": lambda g, n, m, k: [
        normal(g, n, m),
        g.integers(0, 9, n),
        normal(g, 9, m),
        n,
        m,
    ],
    "attention_forward": attention,
    "attention_backward": attention_back,
    "lstm_forward": lambda g, n, m, k: [
        normal(g, n, 4 * m),
        *(normal(g, n, m) for _ in range(3)),
        n,
        m,
    ],
    "lstm_backward": lambda g, n, m, k: [
        g.random((n, 4 * m)),
        *(normal(g, n, m) for _ in range(4)),
        n,
        m,
    ],
    "gru_forward": lambda g, n, m, k: [
        normal(g, n, 3 * m),
        normal(g, n, 3 * m),
        normal(g, n, m),
        normal(g, n, m),
        n,
        m,
    ],
    "gru_backward": lambda g, n, m, k: [
        g.random((n, 3 * m)),
        normal(g, n, 3 * m),
        normal(g, n, m),
        normal(g, n, m),
        n,
        m,
    ],
    "im2col": columns,
    "col2im": lambda g, n, m, k: [*reversed((a := columns(g, n, m, k))[:2]), *a[2:]],
    "maxpool_forward": maxpool,
    "maxpool_backward": maxpool_back,
    "avgpool_forward": lambda g, n, m, k: [*pool(g, n, m, k)],
    "avgpool_backward": lambda g, n, m, k: [(a := pool(g, n, m, k))[1], a[0], a[2]],
    "maxpool2d_forward": tiles,
    "maxpool2d_backward": tiles_back,
    "conv2d_forward": lambda g, n, m, k: [*conv2d(g, n, m, k), m % 3 % 2],
    "conv2d_backward_input": conv2d_input,
    "conv2d_backward_weights": conv2d_weights,
    "adam_step": adam,
    "adam_direction": lambda g, n, m, k: [
        *(a := adam(g, n, m, k))[:4],
        normal(g, n * m),
        n * m,
        *a[6:12],
    ],
    "sparse_sgd": lambda g, n, m, k: [
        normal(g, n * m),
        normal(g, n * m) * (g.random(n * m) < 0.05),
        n * m,
        0.1,
    ],
    "slot_squares": slots,
    "slot_scale": slots,
    "int8_unpack": int8_values,
    "sign_pack": sign_codes,
    "sign_unpack": sign_values,
    "add_and_keep": residual,
    "topk_pack": packet,
    "topk_unpack": unpacked,
    "half_pack": half,
    "half_unpack": widened,
}


# What the reference draws or breaks ties by differs: tests/backend/test_compress.py
FREE = {"int8_pack", "topk", "topk_feedback"}
PACKED = {name for name, kernel in KERNELS.items() if kernel.family == "compress"}


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
    "name", sorted(n for n in set(CASES) - PACKED if KERNELS[n].family not in ("optim", "conv2d"))
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
