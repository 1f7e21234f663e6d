"""A picture of samples: images, fields with color bars, series as lines, bytes as text."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.manifest import Arrays, Field
from mpidl.extras import load_extra
from mpidl.files import write_atomically

PIXELS = 256  # along an axis; larger samples are thinned out
POINTS = 2000  # of a line
CHANNELS = 3  # that are shown, each in a row of its own
ROWS = 8
FEW = 8  # axes up to this length are channels, longer ones are space or time
TEXT = 240  # characters
LARGEST = 1e100  # number that is drawn


def plot_samples(fields: Mapping[str, Field], arrays: Arrays, path: Path, title: str) -> None:
    """Draw samples, a column for each; numbers stand above them.

    Args:
        fields: What the arrays are.
        arrays: Field -> (n, *shape).
        path: The file; its suffix chooses the format.
        title: Above the plot.

    Raises:
        PlatformError: matplotlib is missing.
        OSError: The file cannot be written.
    """
    load_extra("matplotlib", "drawing samples").use("Agg")
    plt = load_extra("matplotlib.pyplot", "drawing samples")
    rows = [row for name in arrays for row in _rows(name, fields[name], arrays[name])][:ROWS]
    count = len(next(iter(arrays.values())))
    size = (1.9 * count + 1.2, 2.0 * max(1, len(rows)) + 0.9)
    figure, grid = plt.subplots(
        max(1, len(rows)), count, figsize=size, layout="constrained", squeeze=False
    )
    for axes, (label, values, draw) in zip(grid, rows, strict=False):
        draw(axes, values)
        axes[0].set_ylabel(_plain(label), fontsize=8, parse_math=False)
    for index in range(count):
        grid[0, index].set_title(_numbers(fields, arrays, index), fontsize=8, parse_math=False)
    if not rows:
        for axis in grid[0]:
            axis.axis("off")
    figure.suptitle(_plain(title, 100), fontsize=10, parse_math=False)
    try:
        with write_atomically(path) as partial, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # letters that the font does not have
            figure.savefig(partial, dpi=110, format=path.suffix[1:].lower())
    finally:
        plt.close(figure)


def _plain(text: str, most: int = 40) -> str:
    """A text of others, short and without control characters."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def _numbers(fields: Mapping[str, Field], arrays: Arrays, index: int) -> str:
    """The fields of one number, such as the label, in lines."""
    lines = []
    for name, field in fields.items():
        if name not in arrays or arrays[name][index].size != 1:
            continue
        value = arrays[name][index].item()
        names = field.class_names or ()
        named = isinstance(value, int) and 0 <= value < len(names)
        shown = f"{value}: {names[value]}" if named else f"{value:.6g}"
        lines.append(_plain(f"{name} {shown}", 26))
    return "\n".join(lines[:6])


def _rows(name: str, field: Field, array: NDArray[Any]) -> list[tuple[str, NDArray[Any], Any]]:
    """The rows of a field: what to write beside, the values, and the function that draws them."""
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 1 or array[0].size == 1:
        return []
    if array.ndim == 2:
        text = array.dtype.kind == "u" and _is_text(array)
        return [(name, array, _draw_texts if text else _draw_lines)]
    if field.role == "label" and array.ndim == 3 and array.dtype.kind in "iu":
        return [(name, array, _draw_masks)]
    if array.ndim == 3:
        if array.shape[2] <= FEW and array.shape[1] >= 2 * array.shape[2]:
            return [(name, array, _draw_lines)]
        return [(name, array, _draw_images if array.dtype == np.uint8 else _draw_maps)]
    if array.ndim == 4 and _is_color(array):
        return [(name, array, _draw_images)]
    return _slices(name, array)


def _slices(name: str, array: NDArray[Any]) -> list[tuple[str, NDArray[Any], Any]]:
    """Maps of the first channels; of volumes the slice in the middle."""
    channels = array.shape[-1] <= FEW
    while array.ndim > (4 if channels else 3):
        middle = array.shape[1] // 2
        name = f"{name}[{middle}]"
        array = array[:, middle]
    if not channels:
        return [(name, array, _draw_maps)]
    shown = range(min(CHANNELS, array.shape[-1]))
    return [(f"{name}[..., {index}]", array[..., index], _draw_maps) for index in shown]


def _is_color(array: NDArray[Any]) -> bool:
    """Whether images (n, h, w, c) can be shown in colors: bytes, or numbers from 0 to 1."""
    if array.shape[-1] not in (3, 4):
        return False
    floats = array.dtype.kind == "f"
    return array.dtype == np.uint8 or bool(floats and np.all((array >= 0) & (array <= 1)))


def _is_text(array: NDArray[Any]) -> bool:
    """Whether these are bytes, and mostly letters and blanks of ASCII."""
    if array.shape[1] < 16 or array.max() > 255:
        return False
    letters = ((array >= 32) & (array < 127)) | np.isin(array, [9, 10, 13])
    return bool(letters.mean() > 0.9)


def _thin(array: NDArray[Any]) -> NDArray[Any]:
    """An image of at most `PIXELS` pixels along its axes."""
    return array[:: -(-array.shape[0] // PIXELS), :: -(-array.shape[1] // PIXELS)]


def _drawable(array: NDArray[Any]) -> Any:
    """As float64, without what has no place on an axis: NaN, infinities, numbers near them."""
    exact = array.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.ma.masked_where(~(np.abs(exact) < LARGEST), exact)


def _draw_images(axes: Any, values: NDArray[Any]) -> None:
    for axis, value in zip(axes, values, strict=True):
        image = _thin(value)
        image = image.astype(np.float32) if image.dtype.kind == "f" else image
        axis.imshow(image, cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
        axis.set(xticks=[], yticks=[])


def _draw_masks(axes: Any, values: NDArray[Any]) -> None:
    shown = [_thin(value) for value in values]
    low, high = min(int(v.min()) for v in shown), max(int(v.max()) for v in shown)
    for axis, value in zip(axes, shown, strict=True):
        image = axis.imshow(value, cmap="tab20", vmin=low, vmax=high, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
    axes[0].figure.colorbar(image, ax=list(axes), shrink=0.9, pad=0.01)


def _draw_maps(axes: Any, values: NDArray[Any]) -> None:
    """All in the same colors; red and blue where there are negative and positive numbers."""
    shown = [_drawable(_thin(value)) for value in values]
    finite = [value.compressed() for value in shown if value.count()]
    low = min((float(value.min()) for value in finite), default=0.0)
    high = max((float(value.max()) for value in finite), default=1.0)
    colors = "viridis"
    if low < 0 < high:
        high = max(-low, high)
        low, colors = -high, "RdBu_r"
    for axis, value in zip(axes, shown, strict=True):
        image = axis.imshow(value, cmap=colors, vmin=low, vmax=high)
        axis.set(xticks=[], yticks=[], facecolor="0.7")  # gray where there are no values
    axes[0].figure.colorbar(image, ax=list(axes), shrink=0.9, pad=0.01)


def _draw_lines(axes: Any, values: NDArray[Any]) -> None:
    """Over the steps of a series, or the elements of a vector; a line for each channel."""
    for axis, value in zip(axes, values, strict=True):
        step = -(-len(value) // POINTS)
        shown = _drawable(value[::step])
        axis.plot(np.arange(len(shown)) * step, shown, lw=1, marker="." if len(shown) < 40 else "")
        axis.tick_params(labelsize=6)
        axis.grid(alpha=0.3)


def _draw_texts(axes: Any, values: NDArray[Any]) -> None:
    for axis, value in zip(axes, values, strict=True):
        text = bytes(value[:TEXT].tolist()).decode(errors="replace")
        plain = "".join(letter if letter.isprintable() else " " for letter in text)
        lines = "\n".join(textwrap.wrap(plain, 24))
        axis.text(0.02, 0.98, lines, va="top", family="monospace", fontsize=6, parse_math=False)
        axis.set(xticks=[], yticks=[])
