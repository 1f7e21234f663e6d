"""Tables of Apache Parquet and Arrow, read group of rows by group of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.formats.source import MALFORMED, Importer, Roles, Source, unusable
from mpidl.data.formats.table import choose_columns, join_labels, label_candidates
from mpidl.data.manifest import MAX_CLASSES, Arrays
from mpidl.errors import DataError
from mpidl.extras import load_extra
from mpidl.registry import NoOptions

ACTIVITY = "reading Parquet and Arrow tables"
_REMEDY = "copy the file again; Parquet, and Arrow or Feather 2 files (no streams) can be read"
Words = tuple[str, ...]


class ParquetImporter(Importer):
    """Columns of numbers become one vector "features", the label columns "label".

    Columns of lists are arrays of their own.
    """

    INPUT = "Parquet, Arrow or Feather tables with the same columns (needs pyarrow)"
    SUFFIXES = (".parquet", ".arrow", ".feather")
    SEVERAL_FILES = True
    HEEDS_ROLES = True

    @classmethod
    def open(cls, paths: Sequence[Path], roles: Roles, options: NoOptions) -> Source:
        """See `Importer.open`."""
        parts = [_open_part(path) for path in paths]
        schema = parts[0].schema
        for part in parts[1:]:
            _check_schema(part, parts[0])
        features, labels = choose_columns(schema.names, roles, paths[0])
        table = _Table(
            parts,
            [schema.names[column] for column in features],
            [schema.names[column] for column in labels],
        )
        return table.source()


@dataclass(frozen=True)
class _Part:
    """One file.

    Attributes:
        path: The file.
        schema: Its Arrow schema.
        rows: Numbers of rows of its groups.
        read: (group, names of columns) -> an Arrow table.
    """

    path: Path
    schema: Any
    rows: list[int]
    read: Callable[[int, list[str]], Any]

    def error(self, what: str, remedy: str) -> DataError:
        """An error about this file."""
        return DataError(what, where=str(self.path), remedy=remedy)


def _open_part(path: Path) -> _Part:
    arrow = load_extra("pyarrow", ACTIVITY)
    try:
        with path.open("rb") as raw:
            is_parquet = raw.read(4) == b"PAR1"
        if not is_parquet:
            file = load_extra("pyarrow.ipc", ACTIVITY).open_file(arrow.memory_map(str(path)))
            count = file.num_record_batches
            rows = [file.get_batch(group).num_rows for group in range(count)]

            def read(group: int, names: list[str]) -> Any:
                return arrow.Table.from_batches([file.get_batch(group)]).select(names)

            return _Part(path, file.schema, rows, read)
        stored = load_extra("pyarrow.parquet", ACTIVITY).ParquetFile(path)
        about = stored.metadata
        rows = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        return _Part(
            path,
            stored.schema_arrow,
            rows,
            lambda group, names: stored.read_row_group(group, names, use_threads=False),
        )
    except (*MALFORMED, arrow.ArrowException) as error:
        raise unusable(error, path, _REMEDY) from error


def _check_schema(part: _Part, first: _Part) -> None:
    """Refuse a file whose columns are others than those of the first one."""
    if part.schema.names != first.schema.names:
        raise part.error(
            f"has the columns {', '.join(part.schema.names)}, where {first.path} has "
            f"{', '.join(first.schema.names)}",
            "shard tables of one kind together",
        )
    for one, other in zip(part.schema, first.schema, strict=True):
        if one.type != other.type:
            raise part.error(
                f"the column {one.name!r} holds {one.type}, where {first.path} has {other.type}",
                "convert the column to one type in all files",
            )


class _Table:
    """Files of one schema as samples.

    Args:
        parts: The files.
        features: Names of feature columns.
        labels: Names of label columns.
    """

    def __init__(self, parts: list[_Part], features: list[str], labels: list[str]) -> None:
        self._parts = parts
        self._features = features
        self._labels = labels
        groups = [
            (part, group, rows) for part in parts for group, rows in enumerate(part.rows) if rows
        ]
        self._groups = [(part, group) for part, group, _ in groups]
        self._edges = np.cumsum([0, *(rows for *_, rows in groups)]).tolist()
        self._words = {name: self._find_words(name) for name in labels}
        # samples are read one after the other: the groups at hand are the last ones
        self._decode = lru_cache(maxsize=1)(self._decode_group)

    def source(self) -> Source:
        """The samples."""
        if not self._edges[-1]:
            raise self._parts[0].error("has no rows", "check the file")
        first = self.read(0, min(self._edges[1], 10_000))
        vectors = first.get("features", np.empty((0, 0), np.float32))
        scalars = [name for name in self._features if name not in first]
        fields = tuple(name for name in first if name != "label")
        return Source(
            self._edges[-1],
            self.read,
            class_names=next(iter(self._words.values())) if len(self._words) == 1 else None,
            label="label" if self._labels else None,
            roles=dict.fromkeys(fields, "feature"),
            candidates=() if self._labels else label_candidates(scalars, vectors),
        )

    def read(self, start: int, stop: int) -> Arrays:
        """The samples [start, stop)."""
        pieces: list[Arrays] = []
        first = min(int(np.searchsorted(self._edges, start, "right")), len(self._groups)) - 1
        for index in range(first, len(self._groups)):
            low = self._edges[index]
            if low >= stop and pieces:
                break
            rows = slice(max(start - low, 0), max(stop - low, 0))
            pieces.append({name: array[rows] for name, array in self._decode(index).items()})
        if len({array.shape[1:] for piece in pieces for array in piece.values()}) > len(pieces[0]):
            raise self._groups[first][0].error(
                "a column of lists changes their length", "pad the lists to one length"
            )
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _decode_group(self, index: int) -> Arrays:
        """A group of rows as arrays."""
        part, group = self._groups[index]
        names = [*self._features, *self._labels]
        columns = dict(zip(names, _load(part, group, names), strict=True))
        arrays: Arrays = {}
        scalars = []
        for name in self._features:
            values = _numbers(part, name, columns[name])
            if values.ndim > 1:
                arrays[name] = values
            else:
                with np.errstate(over="ignore"):  # infinities, which the writer refuses
                    scalars.append(values.astype(np.float32))
        taken = {"features"} if scalars else set()
        for name in (taken | ({"label"} if self._labels else set())) & arrays.keys():
            raise part.error(
                f"the column {name!r} of lists has the name of the field of other columns",
                "rename it",
            )
        if scalars:
            arrays = {"features": np.stack(scalars, axis=1)} | arrays
        if self._labels:
            found = [
                (self._label(part, name, columns[name]), self._words[name]) for name in self._labels
            ]
            arrays["label"] = join_labels(self._labels, found, part.path)[0]
        return arrays

    def _label(self, part: _Part, name: str, column: Any) -> NDArray[Any]:
        words = self._words[name]
        if words is not None:
            compute: Any = load_extra("pyarrow.compute", ACTIVITY)
            arrow: Any = load_extra("pyarrow", ACTIVITY)
            numbers = compute.index_in(column.cast(arrow.string()), arrow.array(words))
            return np.asarray(numbers.to_numpy(), np.int64)
        values = _numbers(part, name, column)
        if values.dtype.kind == "f":
            return values.astype(np.float32)
        return values.astype(np.int64)

    def _find_words(self, name: str) -> Words | None:
        """The different words of a label column in all files; None for numbers."""
        arrow: Any = load_extra("pyarrow", ACTIVITY)
        kind = self._parts[0].schema.field(name).type
        if arrow.types.is_dictionary(kind):
            kind = kind.value_type
        if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
            return None
        found: set[str] = set()
        for part, group in self._groups:
            (column,) = _load(part, group, [name])
            found.update(column.unique().cast(arrow.string()).to_pylist())
            if len(found) > MAX_CLASSES:
                raise part.error(
                    f"the label column {name!r} has more than {MAX_CLASSES:,} different words",
                    "name another column with --label",
                )
        return tuple(sorted(found))


def _load(part: _Part, group: int, names: list[str]) -> list[Any]:
    """Columns of a group as Arrow arrays without gaps."""
    arrow = load_extra("pyarrow", ACTIVITY)
    try:
        table = part.read(group, names)
        table.validate(full=True)
    except (*MALFORMED, arrow.ArrowException) as error:
        raise unusable(error, part.path, _REMEDY) from error
    if table.num_rows != part.rows[group]:
        raise part.error(
            f"the group of rows {group} has {table.num_rows} rows where {part.rows[group]} are "
            "promised",
            _REMEDY,
        )
    columns = []
    for name in names:
        column = table.column(name).combine_chunks()
        if isinstance(column, arrow.ChunkedArray):  # of no chunks, or too long for one
            column = (
                arrow.concat_arrays(column.chunks)
                if column.num_chunks
                else arrow.array([], column.type)
            )
        if arrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if column.null_count:
            row = sum(part.rows[:group]) + column.is_null().to_pylist().index(True)
            raise part.error(
                f"row {row} has no value in column {name!r}",
                "fill the gap, or leave out that row or column",
            )
        columns.append(column)
    return columns


def _numbers(part: _Part, name: str, column: Any) -> NDArray[Any]:
    """(rows, *shape) numbers of a column; lists are dimensions.

    Raises:
        DataError: It holds something else, or lists of different lengths.
    """
    arrow = load_extra("pyarrow", ACTIVITY)
    shape: list[int] = []
    if isinstance(column, arrow.ExtensionArray):  # FixedShapeTensor
        shape = list(getattr(column.type, "shape", ()))
        permutation = getattr(column.type, "permutation", None)
        column = column.storage
        if permutation not in (None, list(range(len(shape)))):
            raise part.error(
                f"the column {name!r} holds tensors of permuted axes", "store them in C order"
            )
    rows, lists = len(column), []
    while arrow.types.is_nested(column.type):
        lists.append(_length(part, name, column))
        column = column.flatten()
    if column.null_count:
        raise part.error(f"a list in column {name!r} has a gap", "fill the gaps")
    kind = column.type
    if not (
        arrow.types.is_integer(kind)
        or arrow.types.is_floating(kind)
        or arrow.types.is_boolean(kind)
        or arrow.types.is_decimal(kind)
    ):
        raise part.error(
            f"the column {name!r} holds {kind}, which is not a number",
            f"if it is the label, add --label {name}; otherwise name the columns of numbers with "
            "--feature",
        )
    if arrow.types.is_decimal(kind):
        column = column.cast(arrow.float64())
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values.reshape(rows, *(shape or lists))


def _length(part: _Part, name: str, column: Any) -> int:
    """The one length of all lists of a column.

    Raises:
        DataError: They have several, or are no lists.
    """
    arrow = load_extra("pyarrow", ACTIVITY)
    kind = column.type
    if arrow.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    if not (arrow.types.is_list(kind) or arrow.types.is_large_list(kind)):
        raise part.error(
            f"the column {name!r} holds {kind}", "name the columns of numbers with --feature"
        )
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise part.error(
            f"the column {name!r} holds lists of {lengths[0]} to {lengths[-1]} elements",
            "pad the lists to one length",
        )
    return int(lengths[0]) if len(lengths) else 1
