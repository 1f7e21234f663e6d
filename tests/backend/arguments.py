"""Arguments of kernels, of drawn shapes, as their signatures have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings

from mpidl.backend.contract.compress import STEP_LIMIT
from mpidl.backend.contract.conv import ConvGeometry, PoolGeometry
from mpidl.backend.contract.int8 import pack_int8
from mpidl.backend.headers import structs
from mpidl.backend.plain import PLAIN

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


def cached(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    """Tokens of some sequences whose blocks lie anywhere in a cache."""
    heads, dim, block, columns, rows = 1 + k % 3, 1 + m % 40, 1 + n % 4, 1 + m % 5, 1 + k
    tokens, blocks = n % 9, rows * columns + 1
    q, out = (g.standard_normal((tokens, heads, dim)) for _ in range(2))
    keys, values = (g.standard_normal((blocks, block, heads, dim)) for _ in range(2))
    table = g.permutation(blocks)[: rows * columns].reshape(rows, columns)
    owner, visible = g.integers(0, rows, tokens), g.integers(0, columns * block + 1, tokens)
    sizes = (tokens, blocks * block, heads, dim, rows, columns, block)
    return [q, keys, values, out, table, owner, visible, *sizes, 0.7]


def cached_int8(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    q, keys, values, *rest = cached(g, n, m, k)
    held: Args = []
    for array in (keys, values):
        held.append(g.integers(-127, 128, array.shape).astype(np.int8))
        held.append((g.random(array.shape[:-1]) / 127).astype(np.float32))
    return [q, *held, *rest]


def bytes_of_cache(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    """Keys and values of tokens, some of them zeros, for any places of a cache."""
    tokens, slots, heads, dim = n % 9, 9 + m % 7, 1 + k % 3, 1 + m % 40
    x = g.standard_normal((tokens, 3, heads, dim))
    x[: k % 2] = 0
    held = [np.zeros((slots, heads, dim), np.int8), np.zeros((slots, heads), np.float32)]
    at = g.permutation(slots)[:tokens]
    return [x, at, *held, *(array.copy() for array in held), tokens, slots, heads, dim]


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


def _int8_weights(g: np.random.Generator, k: int, cols: int, runs: int = 1) -> Args:
    numbers = g.integers(-127, 128, (k, cols)).astype(np.int8)
    packed = pack_int8(numbers, (g.random(cols) / 127).astype(np.float32), runs)
    return [packed.panels, packed.base, packed.scales]


def int8_dense(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    inputs, bias = 1 + 29 * k % 67, normal(g, m).astype(np.float32) if m % 2 else None
    x = normal(g, n, inputs).astype(np.float32)
    x[: n % 3] = 0
    w = _int8_weights(g, inputs, m)
    out = normal(g, n, m).astype(np.float32)
    return [x, *w, bias, out, n, m, inputs, *w[0].shape[:2], k % 2]


def int8_conv(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    """Of three dimensions, some dilated; images with pooling."""
    geometry, images, pool = replace(conv_geometry(g), groups=1), n % 3, 1
    if m % 2:
        pool, kernel, stride = 1 + n % 3, (1, 1 + n % 4, k), (1, 1 + n % 2, 1)
        size, pad = (1, 6 + n % 9, 6 + m % 30), (0, n % 2, k // 2)
        geometry = ConvGeometry(size, 1 + n % 5, m, kernel, stride, pad)
    depth, height, width = geometry.out_size
    outs, cols = depth * (height // pool) * (width // pool), geometry.out_channels
    x = normal(g, images, *geometry.size, geometry.in_channels).astype(np.float32)
    x[: n % 2] = 0
    packed = _int8_weights(g, geometry.taps * geometry.in_channels, cols, geometry.runs)
    bias = normal(g, cols).astype(np.float32) if n % 4 else None
    y = normal(g, images, outs, cols).astype(np.float32)
    sizes = (geometry.record(images), *packed[0].shape[:2], pool, outs, m % 3 % 2)
    return [x, *packed, bias, y, *sizes]


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


def class_shares(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    logits, _, *rest = cross_entropy(g, n, m, k)
    return [logits, g.random((n, m)) * (g.random((n, m)) < 0.5), *rest]


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
