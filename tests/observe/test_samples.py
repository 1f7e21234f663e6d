"""Pictures of samples: each kind of field is drawn as what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.data.manifest import Field, Role
from mpidl.observe import samples
from mpidl.observe.samples import plot_samples

plt = pytest.importorskip("matplotlib.pyplot")
RNG = np.random.default_rng(0)
TEXT = b"In the beginning $God$ created \\alpha the heaven"


def field(array: np.ndarray, role: Role = "feature", **more: Any) -> Field:
    return Field(array.dtype.name, array.shape[1:], role, **more)


KINDS: dict[str, tuple[np.ndarray, Role, list[str]]] = {
    "gray images": (RNG.integers(0, 255, (4, 9, 9, 1), dtype=np.uint8), "feature", ["images"]),
    "color images": (RNG.integers(0, 255, (4, 9, 9, 3), dtype=np.uint8), "feature", ["images"]),
    "colors as floats": (RNG.random((4, 9, 9, 3)), "feature", ["images"]),
    "a field": (RNG.normal(size=(4, 9, 9)), "feature", ["maps"]),
    "a field of a few components": (RNG.normal(size=(4, 9, 9, 2)), "feature", ["maps"] * 2),
    "a field of many components": (RNG.normal(size=(4, 9, 9, 6)), "feature", ["maps"] * 3),
    "a volume": (RNG.normal(size=(4, 9, 10, 11)), "feature", ["maps"]),
    "a volume of components": (RNG.normal(size=(4, 9, 10, 11, 2)), "feature", ["maps"] * 2),
    "a series": (RNG.normal(size=(4, 50, 2)), "feature", ["lines"]),
    "a vector": (RNG.normal(size=(4, 7)), "feature", ["lines"]),
    "a long line": (RNG.normal(size=(4, 7000)), "feature", ["lines"]),
    "classes of pixels": (RNG.integers(0, 5, (4, 9, 9)), "label", ["masks"]),
    "bytes of a text": (np.tile(np.frombuffer(TEXT, np.uint8), (4, 1)), "feature", ["texts"]),
    "bytes as tokens": (
        np.tile(np.frombuffer(TEXT + "é".encode(), np.uint8), (4, 1)).astype(np.uint16),
        "feature",
        ["texts"],
    ),
    "tokens": (RNG.integers(0, 50_000, (4, 40), dtype=np.uint16), "feature", ["lines"]),
    "bytes of no text": (RNG.integers(128, 255, (4, 40), dtype=np.uint8), "feature", ["lines"]),
    "numbers": (RNG.normal(size=4), "feature", []),
    "vectors of one number": (RNG.normal(size=(4, 1)), "feature", []),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds(name: str) -> None:
    array, role, kinds = KINDS[name]
    rows = samples._rows("f", field(array, role), array)
    assert [draw.__name__ for _, _, draw in rows] == [f"_draw_{kind}" for kind in kinds]


@pytest.mark.parametrize("start", range(0, len(KINDS), 5))
def test_all_kinds_can_be_drawn(tmp_path: Path, start: int) -> None:
    part = list(KINDS.items())[start : start + 5]
    arrays = {name: array[:2] for name, (array, _, _) in part}
    fields = {name: field(array, role) for name, (array, role, _) in part}
    plot_samples(fields, arrays, tmp_path / "a.png", "title")
    rows = min(samples.ROWS, sum(len(kinds) for _, (_, _, kinds) in part))
    height, width, _ = plt.imread(tmp_path / "a.png").shape
    assert width > 2 * 150 and height > max(1, rows) * 150
    assert plt.get_fignums() == []


def test_colors_are_the_same_in_all_samples_and_symmetric(tmp_path: Path) -> None:
    figure, axes = plt.subplots(1, 3)
    values = np.stack([np.full((5, 5), -1.0), np.full((5, 5), np.nan), np.full((5, 5), 4.0)])
    samples._draw_maps(axes, values)
    images = [axis.images[0] for axis in axes]
    assert {image.get_clim() for image in images} == {(-4.0, 4.0)}
    assert images[1].get_array().count() == 0, "NaN is left free"
    assert len(figure.axes) == 4, "a color bar"
    plt.close(figure)


def test_large_samples_are_thinned_out() -> None:
    assert samples._thin(np.zeros((1000, 20))).shape == (250, 20)
    figure, axes = plt.subplots(1, 1, squeeze=False)
    samples._draw_lines(axes[0], np.zeros((1, 10**6)))
    assert len(axes[0, 0].lines[0].get_xdata()) <= samples.POINTS
    plt.close(figure)


def test_numbers_and_names_stand_above(tmp_path: Path) -> None:
    label, x = np.array([1, 7]), np.array([[0.5], [2.0]])
    fields = {
        "label": field(label, "label", classes=8, class_names=("cat", "$dog$\x1b[31m")),
        "x": field(x),
    }
    arrays = {"label": label, "x": x}
    assert samples._numbers(fields, arrays, 0) == "label 1: $dog$?[31m\nx 0.5"
    assert samples._numbers(fields, arrays, 1) == "label 7\nx 2"
    plot_samples(fields, arrays, tmp_path / "a.png", "a title $of \\others\x00")
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e308, -1e308])
def test_values_that_cannot_be_drawn(tmp_path: Path, value: float) -> None:
    arrays = {"f": np.full((2, 6, 6), value), "l": np.full((2, 6), value)}
    fields = {name: field(array) for name, array in arrays.items()}
    plot_samples(fields, arrays, tmp_path / "a.png", "")
    assert (tmp_path / "a.png").exists()
