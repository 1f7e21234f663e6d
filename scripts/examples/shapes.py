"""Images of discs, rings and crosses under noise, and their masks.

    python scripts/examples/shapes.py shapes.npz

The archive has `image` (n, 32, 32) float32, gray, and `label` (n, 32, 32) uint8: 0 background, 1
disc, 2 ring, 3 cross, and 255, which is to be ignored, where shapes touch the background: as in
data sets that people have drawn, no one knows the class of these pixels. The brightness of a shape
says nothing about its class.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

SIZE, IGNORE = 32, 255


def inside(kind: int, dx: Any, dy: Any, radius: float, margin: float = 0.0) -> Any:
    """Whether points are in a shape, or not farther than `margin` outside.

    Args:
        kind: 1 disc, 2 ring, 3 cross.
        dx: From the center, pixels.
        dy: As `dx`.
        radius: Of the shape.
        margin: In pixels.
    """
    if kind == 3:
        thin, long = np.minimum(abs(dx), abs(dy)), np.maximum(abs(dx), abs(dy))
        return (thin <= radius / 4 + margin) & (long <= radius + margin)
    distance = np.hypot(dx, dy)
    hole = radius / 2 - margin if kind == 2 else -1.0
    return (distance <= radius + margin) & (distance > hole)


def make(count: int, seed: int) -> dict[str, Any]:
    """Images and masks.

    Args:
        count: How many.
        seed: Of places, sizes, brightness and noise.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    image = np.zeros((count, SIZE, SIZE), np.float32)
    label = np.zeros((count, SIZE, SIZE), np.uint8)
    for picture, mask in zip(image, label, strict=True):
        for _ in range(rng.integers(1, 4)):
            kind, radius = int(rng.integers(1, 4)), rng.uniform(4, 8)
            y, x = rng.uniform(5, SIZE - 5, 2)
            found = inside(kind, columns - x, rows - y, radius)
            mask[inside(kind, columns - x, rows - y, radius, 1.0)] = IGNORE
            mask[found] = kind
            picture[found] = rng.uniform(0.7, 1.5)
    image += 0.4 * rng.standard_normal(image.shape).astype(np.float32)
    return {"image": image, "label": label}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    np.savez(args.out, **make(args.count, args.seed))


if __name__ == "__main__":
    main()
