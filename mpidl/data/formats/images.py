"""Folders of images: one folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mpidl.data.formats.source import Importer, Roles, Source
from mpidl.data.manifest import Arrays
from mpidl.errors import DataError, errno_of, unreadable
from mpidl.extras import load_extra
from mpidl.registry import NoOptions

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".webp"}


class ImagesImporter(Importer):
    """A folder of class folders; the classes are their names in alphabetical order.

    Folders in a class folder belong to that class.

    All images must have one size.
    """

    INPUT = "a folder that has a folder of images for each class (needs Pillow)"

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Any folder."""
        return path.is_dir()

    @classmethod
    def open(cls, paths: Sequence[Path], roles: Roles, options: NoOptions) -> Source:
        """See `Importer.open`."""
        (folder,) = paths
        load_extra("PIL.Image", "reading images")
        if not folder.is_dir():
            raise DataError(
                "is not a folder", where=str(folder), remedy="arrange images as folder/class/x.png"
            )
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
        files = [
            (path, number)
            for number, name in enumerate(classes)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not files:
            raise DataError(
                "holds no class folders with images",
                where=str(folder),
                remedy="arrange it as folder/class/image.png",
            )
        shape = read_image(files[0][0]).shape

        def read(start: int, stop: int) -> Arrays:
            images = np.empty((stop - start, *shape), np.uint8)
            for row, (path, _) in enumerate(files[start:stop]):
                images[row] = _same_shape(read_image(path), shape, path)
            labels = np.array([number for _, number in files[start:stop]], np.int64)
            return {"image": images, "label": labels}

        keys = [str(path.relative_to(folder)) for path, _ in files]
        return Source(len(files), read, tuple(classes), keys=keys)


def read_image(path: Path, file: BinaryIO | None = None) -> NDArray[np.uint8]:
    """An image as (height, width) gray values or (height, width, 3) RGB.

    Args:
        path: The file, or a name for messages.
        file: Its content, where it is part of another file.

    Raises:
        DataError: Pillow cannot read it.
    """
    pillow: Any = load_extra("PIL.Image", "reading images")
    try:
        with pillow.open(path if file is None else file) as image:
            gray = image.mode in ("1", "L", "I;16", "P") and not image.palette
            return np.asarray(image.convert("L" if gray else "RGB"))
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        # Pillow raises all of these for files that are no images
        raise unreadable(errno_of(error), str(path)) or DataError(
            f"cannot be read as an image: {error}",
            where=str(path),
            remedy="remove or replace it",
        ) from error


def _same_shape(image: NDArray[Any], shape: tuple[int, ...], path: Path) -> NDArray[Any]:
    if image.shape != shape:
        raise DataError(
            f"has the shape {image.shape} where the first image has {shape}",
            where=str(path),
            remedy="resize the images"
            if image.shape[:2] != shape[:2]
            else "save all of them in gray, or all in color",
        )
    return image
