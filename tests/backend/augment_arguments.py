"""Arguments of the kernels of augmentation, of drawn shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidl.backend.headers import codes, structs

Args = list[Any]
PLACES = {"seed": 7 << 33 | 5, "epoch": 3}


def geometry(g: np.random.Generator, n: int, m: int, k: int) -> Any:
    """Samples that are moved, mirrored and turned, with every kind of edge."""
    sizes = tuple(int(g.integers(1, high)) for high in (4, 9, 40))
    turn = int(g.integers(0, 4))
    parts = [int(g.integers(1, size + 1)) for size in sizes] if k % 2 else list(sizes)
    if turn & 1:
        parts[2] = parts[1] = min(parts[1:])
    edges = [int(g.choice(list(codes("EDGE").values()))) for _ in sizes]
    # at most once beyond an edge on either side
    low = [-int(g.integers(0, part)) for part in parts]
    spread = [
        int(g.integers(1, 2 * size - part - first + 1))
        for size, part, first in zip(sizes, parts, low, strict=True)
    ]
    mirror = [int(g.choice([0, 1 << 31, 1 << 32])) for _ in range(2)]
    numbers = (n % 9, *sizes, 1 + m % 4, *parts, *low, *spread, *edges, turn, *mirror)
    return np.array(numbers, structs()["augment_geometry"])


def samples(g: np.random.Generator, n: int) -> np.ndarray:
    return g.integers(0, 1 << 40, n)


def gather(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    sizes = geometry(g, n, m, k)
    shape, result = (
        tuple(int(sizes[name]) for name in names)
        for names in (("n", "d", "h", "w", "c"), ("n", "od", "oh", "ow", "c"))
    )
    x, out = g.standard_normal(shape), g.standard_normal(result)
    return [x, out, samples(g, shape[0]), *PLACES.values(), sizes, 0.5, -0.25, 9.0]


def gather_u8(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    x, *rest = gather(g, n, m, k)
    return [g.integers(0, 256, x.shape).astype(np.uint8), *rest]


def vectors(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    _, x, numbers, seed, epoch, sizes, *_ = gather(g, n, m, k)
    channels = x.shape[-1]
    pairs = g.permutation(channels)[: channels // 2 * 2].astype(np.int64)
    return [x, numbers, pairs, len(pairs) // 2, seed, epoch, sizes, 0.25]


def cutout(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    shape = (n % 9, 1 + m % 11, 1 + n % 7, k)
    chance = int(g.choice([0, 1 << 31, 1 << 32]))
    x = g.standard_normal(shape)
    return [x, samples(g, shape[0]), *PLACES.values(), *shape, 1 + m % 5, chance]


def mixup(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    count, size, chance = n % 9, 1 + m % 40, int(g.choice([0, 1 << 31, 1 << 32]))
    x, other, share = (g.standard_normal(shape) for shape in ((count, size), (count, size), count))
    table = np.sort(g.integers(0, (1 << 30) + 1, 2 + k))
    numbers = samples(g, count)
    return [x, other, share, table, numbers, *PLACES.values(), count, size, len(table), chance]


def cutmix(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    shape = (n % 9, 1 + m % 11, 1 + n % 7, k)
    x, other, share, table, numbers, *_, chance = mixup(g, n, m, k)
    x, other = g.standard_normal(shape), g.standard_normal(shape)
    return [x, other, share, table, numbers, *PLACES.values(), *shape, len(table), chance]


def jitter(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    count, pixels, channels = n % 9, 1 + m, (1, 3, 4)[k % 3]
    x = g.standard_normal((count, pixels, channels))
    sizes = (count, pixels, channels)
    return [x, samples(g, count), *PLACES.values(), *sizes, -0.5, *g.random(3)]


def noise(g: np.random.Generator, n: int, m: int, k: int) -> Args:
    count, size = n % 9, 1 + m * k
    x = g.standard_normal((count, size))
    return [x, samples(g, count), *PLACES.values(), count, size, 0.5]
