"""Variables with named dimensions and CF attributes, of NetCDF files and Zarr stores.

CF: NetCDF Climate and Forecast Metadata Conventions 1.11, sections 2.5 (missing data), 3.1 (units),
5.6 (grid mappings) and 8.1 (packed data).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.formats.source import Roles, Source
from mpidl.data.manifest import Arrays
from mpidl.errors import DataError

# Files that differ in these hold different quantities
QUANTITY = ("units", "standard_name", "calendar", "cell_methods", "positive", "grid_mapping")
CRS = ("crs", "crs_wkt", "spatial_ref", "epsg", "proj4", "geospatial_bounds_crs")
MAX_COORDINATES = 1 << 22  # elements of a coordinate that are compared
_ALONE = "make them equal, or shard each on its own"


@dataclass(frozen=True)
class Variable:
    """An array in a file.

    Attributes:
        name: Its name.
        dims: Names of its dimensions; None: the file names none.
        shape: All dimensions.
        dtype: Of what is stored.
        attributes: By name: numbers, texts, lists of them.
        read: (a slice for each dimension) -> the stored values.
    """

    name: str
    dims: tuple[str, ...] | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attributes: Mapping[str, Any]
    read: Callable[[tuple[slice, ...]], NDArray[Any]]


@dataclass(frozen=True)
class Store:
    """A file or folder of variables.

    Attributes:
        path: Where it is.
        variables: By name.
        attributes: Of the whole.
        notes: What is odd about it, for people.
    """

    path: Path
    variables: Mapping[str, Variable]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def error(self, what: str, remedy: str) -> DataError:
        """An error about this store."""
        return DataError(what, where=str(self.path), remedy=remedy)


def plain(value: Any) -> Any:
    """An attribute as number, text or list of them."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def source_from_stores(
    paths: Sequence[Path], load: Callable[[Path], Store], roles: Roles, dim: str | None
) -> Source:
    """The samples along one dimension of stores, one behind the other.

    Args:
        paths: The stores.
        load: Opens one.
        roles: Names of the variables that are features and labels; none: all variables along the
            samples that are no coordinates.
        dim: The dimension of the samples; None: the first one of the (largest) variable.

    Raises:
        DataError: A variable is missing, or the stores do not hold the same quantities.
    """
    first = load(paths[0])
    names, notes = _choose(first, roles, dim)
    axis_of = {name: _axis(first, name, dim, names) for name in names}
    counts = []
    for path in paths:
        store = first if path == paths[0] else load(path)
        notes += store.notes
        _check_same(store, first, axis_of)
        sizes = {name: store.variables[name].shape[axis] for name, axis in axis_of.items()}
        if len(set(sizes.values())) != 1:
            raise store.error(
                f"the variables have different numbers of samples: {sizes}",
                "choose variables along one dimension with --feature, --label and --dim",
            )
        counts.append(next(iter(sizes.values())))
    return Source(
        sum(counts),
        _reader(paths, np.cumsum([0, *counts]).tolist(), load, axis_of),
        roles=roles,
        notes=tuple(dict.fromkeys(notes)),
    )


def _reader(
    paths: Sequence[Path],
    edges: list[int],
    load: Callable[[Path], Store],
    axis_of: Mapping[str, int],
) -> Callable[[int, int], Arrays]:
    """Reads samples; keeps the last store open, since they are read in their order."""
    cached = lru_cache(maxsize=1)(load)

    def read(start: int, stop: int) -> Arrays:
        first = min(max(int(np.searchsorted(edges, start, "right")) - 1, 0), len(paths) - 1)
        pieces: dict[str, list[NDArray[Any]]] = {name: [] for name in axis_of}
        for index in range(first, len(paths)):
            low, high = max(start, edges[index]), min(stop, edges[index + 1])
            if low >= high and index > first:
                continue
            rows = slice(low - edges[index], max(low, high) - edges[index])
            store = cached(paths[index])
            for name, axis in axis_of.items():
                variable = store.variables[name]
                where = tuple(
                    rows if i == axis else slice(None) for i in range(len(variable.shape))
                )
                values = np.moveaxis(variable.read(where), axis, 0)
                pieces[name].append(_decode(store, variable, values, rows.start))
        return {name: np.concatenate(parts) for name, parts in pieces.items()}

    return read


def _choose(store: Store, roles: Roles, dim: str | None) -> tuple[list[str], list[str]]:
    """Names of the variables to read, and notes about others."""
    for option, names in (("--feature", roles.features), ("--label", roles.labels)):
        for name in names:
            if name not in store.variables:
                known = ", ".join(store.variables) or "none"
                raise store.error(
                    f"has no variable {name!r}; its variables are {known}",
                    f"name one of these with {option}",
                )
    if roles.named:
        return list(roles.named), []
    about = {
        word
        for variable in store.variables.values()
        for key in ("coordinates", "bounds", "grid_mapping", "ancillary_variables")
        for word in str(variable.attributes.get(key, "")).split()
    }
    data = {
        name: variable
        for name, variable in store.variables.items()
        if name not in about and variable.dims != (name,) and variable.shape
    }
    if not data:
        raise store.error("holds no variables with samples", "check the file")
    largest = max(data.values(), key=lambda variable: int(np.prod(variable.shape)))
    if dim is None:
        dim = largest.dims[0] if largest.dims else None
    fitting = [
        name
        for name, variable in data.items()
        if variable.dtype.kind in "biuf" and (dim is None or dim in (variable.dims or ()))
    ]
    if not fitting:
        known = ", ".join(sorted({name for v in data.values() for name in v.dims or ()}))
        raise store.error(
            f"has no variable of numbers along {dim!r}; its dimensions are {known or 'not named'}",
            "choose another --dim",
        )
    left = [name for name in data if name not in fitting]
    note = f"left out, being no numbers along {dim!r}: {', '.join(left)}"
    return fitting, [note] if left else []


def _axis(store: Store, name: str, dim: str | None, names: Sequence[str]) -> int:
    """The axis of the samples in a variable."""
    variable = store.variables[name]
    if variable.dtype.kind not in "biuf":
        raise store.error(
            f"the variable {name!r} holds {variable.dtype}, not numbers", "choose other variables"
        )
    leading = [v.dims[0] for v in map(store.variables.__getitem__, names) if v.dims]
    wanted = dim or (leading[0] if leading else None)
    if variable.dims is None and variable.shape and dim is None:
        return 0
    if wanted is None or wanted not in (variable.dims or ()):
        dims = ", ".join(variable.dims or ()) or "none that are named"
        raise store.error(
            f"the variable {name!r} does not lie along {wanted!r}; its dimensions are {dims}",
            "choose the dimension of the samples with --dim, or other variables",
        )
    return (variable.dims or ()).index(wanted)


def _check_same(store: Store, first: Store, axis_of: Mapping[str, int]) -> None:
    """Refuse a store whose variables are not those of the first one.

    Raises:
        DataError: It names the variable and the attribute.
    """
    _compare(store, first, "the file", store.attributes, first.attributes, CRS)
    for name, axis in axis_of.items():
        if name not in store.variables:
            raise store.error(f"has no variable {name!r}, which {first.path} has", _ALONE)
        one, other = store.variables[name], first.variables[name]
        about = [
            {
                "dimensions": variable.dims,
                "shape": variable.shape[:axis] + variable.shape[axis + 1 :],
                "dtype": _decoded_dtype(home, variable).name,
            }
            for home, variable in ((store, one), (first, other))
        ]
        _compare(store, first, f"the variable {name!r}", about[0], about[1], tuple(about[0]))
        _compare(store, first, f"the variable {name!r}", one.attributes, other.attributes, QUANTITY)
        grid = str(one.attributes.get("grid_mapping", ""))
        if grid in store.variables and grid in first.variables:
            mine, its = (home.variables[grid].attributes for home in (store, first))
            _compare(store, first, f"the grid mapping {grid!r}", mine, its, (*mine, *its))
        for position, dim in enumerate(one.dims or ()):
            if position != axis:
                _check_coordinate(store, first, dim)


def _check_coordinate(store: Store, first: Store, dim: str) -> None:
    """Refuse other values of the coordinate along a dimension."""
    one, other = store.variables.get(dim), first.variables.get(dim)
    if store is first or one is None or other is None:
        return
    _compare(store, first, f"the coordinate {dim!r}", one.attributes, other.attributes, QUANTITY)
    everything = (slice(None),) * len(one.shape)
    if int(np.prod(one.shape)) > MAX_COORDINATES or one.dtype.kind not in "biuf":
        return
    if one.shape != other.shape or not np.array_equal(
        one.read(everything), other.read(everything), equal_nan=one.dtype.kind == "f"
    ):
        raise store.error(
            f"the coordinate {dim!r} has other values than in {first.path}",
            "regrid the files to one grid, or shard each on its own",
        )


def _compare(
    store: Store,
    first: Store,
    what: str,
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    names: Sequence[str],
) -> None:
    for name in names:
        mine, its = plain(one.get(name)), plain(other.get(name))
        if repr(mine) != repr(its):  # which are equal for two NaN
            raise store.error(
                f"{what} has {name} = {mine!r}, where {first.path} has {its!r}", _ALONE
            )


def _number(store: Store, variable: Variable, name: str) -> float | None:
    """The attribute `name`, a finite number, if the variable has it."""
    value = plain(variable.attributes.get(name))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise store.error(
            f"the attribute {name} of {variable.name!r} is {value!r}, not a finite number",
            "repair the attribute",
        )
    return float(value)


def _decoded_dtype(store: Store, variable: Variable) -> np.dtype[Any]:
    """The dtype of the values that are meant: float32 holds what packs them in 16 bits."""
    numbers = (_number(store, variable, name) for name in ("scale_factor", "add_offset"))
    if all(number is None for number in numbers):
        dtype = variable.dtype.newbyteorder("=")
        return np.dtype(f"u{dtype.itemsize}") if _is_unsigned(variable) else dtype
    return np.dtype(
        np.float32
        if variable.dtype.itemsize <= 2
        else variable.dtype.newbyteorder("=")
        if variable.dtype.kind == "f"
        else np.float64
    )


def _is_unsigned(variable: Variable) -> bool:
    """Whether signed bytes mean unsigned ones, as NetCDF 3 cannot say otherwise."""
    return variable.dtype.kind == "i" and str(variable.attributes.get("_Unsigned")) == "true"


def _decode(store: Store, variable: Variable, raw: NDArray[Any], start: int) -> NDArray[Any]:
    """The values that are meant by what is stored; missing ones are NaN.

    Args:
        store: Where they are from.
        variable: The variable.
        raw: (n, *shape) stored values.
        start: Number of the first sample in this store.

    Raises:
        DataError: Values of whole numbers are missing.
    """
    missing = np.zeros(raw.shape, bool)
    for name in ("_FillValue", "missing_value"):
        for value in np.atleast_1d(np.asarray(variable.attributes.get(name, []))):
            if value.dtype.kind in "iuf":  # written with more digits than the values, maybe
                missing |= raw == (value.astype(raw.dtype) if raw.dtype.kind == "f" else value)
    dtype = _decoded_dtype(store, variable)
    if _is_unsigned(variable):
        raw = raw.astype(raw.dtype.newbyteorder("=")).view(f"u{raw.dtype.itemsize}")
    scale, offset = (_number(store, variable, name) for name in ("scale_factor", "add_offset"))
    if scale is not None or offset is not None:
        raw = raw * (1.0 if scale is None else scale) + (offset or 0.0)
    values = np.array(raw, dtype, order="C")
    if missing.any():
        if dtype.kind != "f":
            sample = start + int(missing.reshape(len(missing), -1).any(axis=1).argmax())
            raise store.error(
                f"the variable {variable.name!r} has missing values (_FillValue) in sample "
                f"{sample}",
                "fill them, or leave out these samples",
            )
        values[missing] = np.nan  # which the writer refuses with the number of the sample
    return values
