"""Augmentation of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend.headers import codes
from mpidl.backend.plain.pointwise import philox_words

NDArr = NDArray[Any]
Indices = NDArray[np.int64]
_EDGES = codes("EDGE")
_MOVE, _MIRROR, _CUTOUT, _JITTER, _MIX = range(0x41550000, 0x41550005)
_NOISE = 0x80000000
_GRAY = np.array([0.299, 0.587, 0.114])


def _draw(samples: Indices, seed: int, epoch: int, stream: int) -> NDArray[np.uint64]:
    """(n, 4) random words below 2^32."""
    numbers = samples.astype(np.uint64)
    return philox_words(numbers, numbers >> np.uint64(32), epoch, stream, seed)


def _below(words: NDArray[np.uint64], count: int) -> Indices:
    return ((words * np.uint64(count)) >> np.uint64(32)).astype(np.int64)


def _place(
    g: Any, samples: Indices, seed: int, epoch: int
) -> tuple[list[Indices], Indices, Indices, Indices]:
    """Shifts of d, h, w; whether h and w are swapped; whether the source's h, w are mirrored."""
    move = _draw(samples, seed, epoch, _MOVE)
    shifts = [
        int(g[f"low_{a}"]) + _below(move[:, k], g[f"spread_{a}"]) for k, a in enumerate("dhw")
    ]
    turn, code = int(g["turn"]), move[:, 3].astype(np.int64)
    swap = code & turn & 1
    mirrored_h = code >> 1 & 1 if turn else np.zeros_like(code)
    mirrored_w = mirrored_h ^ swap if turn == 1 else code >> 2 & 1 if turn else np.zeros_like(code)
    if g["mirror_h"] or g["mirror_w"]:
        words = _draw(samples, seed, epoch, _MIRROR).astype(np.int64)
        h, w = words[:, 0] < g["mirror_h"], words[:, 1] < g["mirror_w"]
        mirrored_h = mirrored_h ^ np.where(swap, w, h)
        mirrored_w = mirrored_w ^ np.where(swap, h, w)
    return shifts, swap, mirrored_h, mirrored_w


def _fold(at: Indices, size: int, edge: int) -> Indices:
    """The elements within [0, size) that stand for `at`; -1 where there is none."""
    inside = (at >= 0) & (at < size)
    if edge == _EDGES["wrap"]:
        return at % size
    if edge == _EDGES["reflect"]:
        return np.where(inside, at, np.where(at < 0, -at, 2 * (size - 1) - at))
    return np.clip(at, 0, size - 1) if edge == _EDGES["nearest"] else np.where(inside, at, -1)


def augment_gather(
    x: NDArr,
    out: NDArr,
    samples: Indices,
    seed: int,
    epoch: int,
    g: Any,
    scale: float,
    shift: float,
    fill: float,
) -> None:
    """AugmentOps.augment_gather."""
    n, d, h, w, c = (int(g[name]) for name in "ndhwc")
    od, oh, ow = (int(g[name]) for name in ("od", "oh", "ow"))
    shifts, swap, mirrored_h, mirrored_w = _place(g, samples, seed, epoch)

    def column(values: Indices) -> Indices:
        return values.reshape(-1, 1, 1, 1)

    i, j = np.arange(oh).reshape(1, 1, oh, 1), np.arange(ow).reshape(1, 1, 1, ow)
    row, col = np.where(column(swap), j, i), np.where(column(swap), i, j)
    row = np.where(column(mirrored_h), oh - 1 - row, row) + column(shifts[1])
    col = np.where(column(mirrored_w), ow - 1 - col, col) + column(shifts[2])
    depth = np.arange(od).reshape(1, od, 1, 1) + column(shifts[0])
    depth, row, col = (
        _fold(at, size, int(g[f"edge_{axis}"]))
        for at, size, axis in zip((depth, row, col), (d, h, w), "dhw", strict=True)
    )
    moved = x.reshape(n, d, h, w, c)[np.arange(n).reshape(-1, 1, 1, 1), depth, row, col]
    inside = (depth >= 0) & (row >= 0) & (col >= 0)
    real = out.dtype.type
    scaled = moved.astype(out.dtype) * real(scale) + real(shift)
    out.reshape(n, od, oh, ow, c)[...] = np.where(inside[..., None], scaled, real(fill))


augment_gather_u8 = augment_gather


def augment_vectors(
    x: NDArr,
    samples: Indices,
    vectors: Indices,
    count: int,
    seed: int,
    epoch: int,
    g: Any,
    shift: float,
) -> None:
    """AugmentOps.augment_vectors."""
    n, c = int(g["n"]), int(g["c"])
    _, swap, mirrored_h, mirrored_w = (
        part if isinstance(part, list) else part.reshape(-1, 1)
        for part in _place(g, samples, seed, epoch)
    )
    twice = x.dtype.type(2 * shift)
    pixels = x.reshape(n, int(g["od"] * g["oh"] * g["ow"]), c)
    for u, v in vectors.reshape(count, 2):
        along_h = np.where(mirrored_h, twice - pixels[..., u], pixels[..., u])
        along_w = np.where(mirrored_w, twice - pixels[..., v], pixels[..., v])
        pixels[..., u] = np.where(swap, along_w, along_h)
        pixels[..., v] = np.where(swap, along_h, along_w)


def augment_cutout(
    x: NDArr,
    samples: Indices,
    seed: int,
    epoch: int,
    n: int,
    h: int,
    w: int,
    c: int,
    size: int,
    chance: int,
) -> None:
    """AugmentOps.augment_cutout."""
    words = _draw(samples, seed, epoch, _CUTOUT)
    side = np.where(words[:, 2].astype(np.int64) < chance, size, 0)
    x.reshape(n, h, w, c)[_boxes(words[:, :2], (h, w), (side, side))] = 0


def _boxes(
    words: NDArray[np.uint64], extents: tuple[int, int], sizes: tuple[Indices, Indices]
) -> NDArray[np.bool_]:
    """Which pixels (n, h, w) lie in a box for each sample.

    Args:
        words: (n, 2), from which the middle of a box is drawn, of rows and of columns.
        extents: h and w.
        sizes: (n,) of the boxes, in rows and in columns.
    """
    box = np.ones((len(words), *extents), bool)
    for axis, (extent, size) in enumerate(zip(extents, sizes, strict=True)):
        first = _below(words[:, axis], extent) - size // 2
        at = np.arange(extent).reshape((1, extent, 1) if axis == 0 else (1, 1, extent))
        low, high = (edge.reshape(-1, 1, 1) for edge in (first, first + size))
        box &= (at >= low) & (at < high)
    return box


def _quantile(table: Indices, words: NDArray[np.uint64]) -> Indices:
    """The places 2^-32 * words of the way through a table of numbers up to 2^30."""
    at = words * np.uint64(len(table) - 1)
    index = (at >> np.uint64(32)).astype(np.int64)
    step = table[index + 1] - table[index]
    return np.asarray(table[index] + (step * (at & np.uint64(0xFFFFFFFF)).astype(np.int64) >> 32))


def augment_mixup(
    x: NDArr,
    other: NDArr,
    share: NDArr,
    table: Indices,
    samples: Indices,
    seed: int,
    epoch: int,
    n: int,
    size: int,
    count: int,
    chance: int,
) -> None:
    """AugmentOps.augment_mixup."""
    words = _draw(samples, seed, epoch, _MIX)
    mixed = words[:, 1].astype(np.int64) < chance
    share[...] = np.where(mixed, _quantile(table, words[:, 0]) / (1 << 30), 1)
    own = share.reshape(n, 1)
    rows, others = x.reshape(n, size), other.reshape(n, size)
    rows[...] = np.where(mixed[:, None], own * rows + (1 - own) * others, rows)


def augment_cutmix(
    x: NDArr,
    other: NDArr,
    share: NDArr,
    table: Indices,
    samples: Indices,
    seed: int,
    epoch: int,
    n: int,
    h: int,
    w: int,
    c: int,
    count: int,
    chance: int,
) -> None:
    """AugmentOps.augment_cutmix."""
    words = _draw(samples, seed, epoch, _MIX)
    side = np.where(words[:, 1].astype(np.int64) < chance, _quantile(table, words[:, 0]), 0)
    box = _boxes(words[:, 2:], (h, w), ((h * side) >> 30, (w * side) >> 30))
    share[...] = (h * w - box.sum(axis=(1, 2))) / (h * w)
    x.reshape(n, h, w, c)[box] = other.reshape(n, h, w, c)[box]


def augment_jitter(
    x: NDArr,
    samples: Indices,
    seed: int,
    epoch: int,
    n: int,
    pixels: int,
    c: int,
    black: float,
    brightness: float,
    contrast: float,
    saturation: float,
) -> None:
    """AugmentOps.augment_jitter."""
    words = _draw(samples, seed, epoch, _JITTER) / 2.0**32
    spreads = np.array([brightness, contrast, saturation])
    bright, harsh, vivid = (1 + spreads * (2 * words[:, :3] - 1)).T[..., None, None]
    images = x.reshape(n, pixels, c)

    def gray(of: NDArr) -> NDArr:
        found = of @ _GRAY if c == 3 else of.mean(axis=2)
        return np.asarray(found[..., None])

    lit = black + bright * (images.astype(np.float64) - black)
    mean = gray(lit).mean(axis=1, keepdims=True)
    shown = mean + harsh * (lit - mean)
    images[...] = gray(shown) + vivid * (shown - gray(shown)) if c == 3 else shown


def augment_noise(
    x: NDArr, samples: Indices, seed: int, epoch: int, n: int, size: int, std: float
) -> None:
    """AugmentOps.augment_noise."""
    blocks = np.arange(-(-size // 4), dtype=np.uint64) | np.uint64(_NOISE)
    for k, number in enumerate(samples[:n]):
        low = np.full(len(blocks), number, np.uint64)
        words = philox_words(low, low >> np.uint64(32), epoch, blocks, seed)
        first, second = words[:, ::2], words[:, 1::2].astype(np.uint32).astype(np.int32)
        u = ((first >> np.uint64(8)).astype(np.float64) + 0.5) / 2**24
        radius, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * second / 2.0**32
        normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1)
        x.reshape(n, size)[k] += (std * normal[:size]).astype(x.dtype)
