"""The order of axes in images: mpidl takes (height, width, channels)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from mpidl.data.formats.source import Source
from mpidl.data.manifest import Arrays
from mpidl.errors import DataError

Channels = Literal["first", "last"]


def channels_last(source: Source, channels: Channels | None, where: str) -> Source:
    """The source with its images as (height, width, channels).

    Args:
        source: Samples; fields of three dimensions are images.
        channels: "first": (c, h, w), to be transposed; "last": (h, w, c); None: refuse images
            that seem to be (c, h, w).
        where: The files, for messages.

    Raises:
        DataError: Images seem to have their channels first, or there are none to transpose.
    """
    first = source.read(0, min(1, source.samples))
    images = [name for name, array in first.items() if array.ndim == 4]
    if channels is None:
        _refuse_channels_first({name: first[name].shape[1:] for name in images}, where)
    if channels != "first":
        return source
    if not images:
        shapes = {name: array.shape[1:] for name, array in first.items()}
        raise DataError(
            f"has no images (c, h, w) to transpose, only {shapes}",
            where=where,
            remedy="leave out --channels-first",
        )

    def read(start: int, stop: int) -> Arrays:
        return {
            name: np.ascontiguousarray(np.moveaxis(array, 1, -1)) if name in images else array
            for name, array in source.read(start, stop).items()
        }

    return replace(source, read=read)


def _refuse_channels_first(images: dict[str, tuple[int, ...]], where: str) -> None:
    for name, shape in images.items():
        if shape[0] in (1, 3, 4) and min(shape[1:]) > 4:
            raise DataError(
                f"{name!r} has samples of shape {shape}, as images with their channels first; "
                "mpidl takes (height, width, channels)",
                where=where,
                remedy="add --channels-first to transpose them, or --channels-last if they are "
                "(height, width, channels) already",
            )
