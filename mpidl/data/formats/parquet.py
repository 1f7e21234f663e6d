"""Tables of Apache Arrow: Parquet, Arrow IPC and Feather files, read by groups of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.formats.source import LABEL_NAMES, Importer, Source, concatenated
from mpidl.data.manifest import Arrays
from mpidl.errors import DataError, errno_of, unreadable
from mpidl.extras import load_extra
from mpidl.registry import NoOptions

_REMEDY = "check the file, or write it again with pyarrow or pandas"


class ParquetImporter(Importer):
    """Numeric columns become one vector "features", lists of one length a field each.

    The label column becomes "label": whole or real numbers, or words as classes in alphabetical
    order over all files.
    """

    INPUT = "Parquet, Arrow or Feather tables with the same columns (needs pyarrow)"
    SUFFIXES = (".parquet", ".arrow", ".feather")
    SEVERAL_FILES = True

    @classmethod
    def open(cls, paths: Sequence[Path], label: str | None, options: NoOptions) -> Source:
        """See `Importer.open`."""
        tables = [_open(path) for path in paths]
        for table in tables[1:]:
            if not table.schema.equals(tables[0].schema):
                raise table.error(
                    f"has other columns or types than {paths[0]}", "write them with one schema"
                )
        name = _find_label(tables[0], label)
        words = _words(tables, name) if name is not None else None
        for table in tables:
            _check_columns(table, name)
        source = concatenated([_source(table, name, words) for table in tables], {})
        return replace(
            source,
            class_names=words,
            label=None if name is None else "label",
            candidates=() if name is not None else tuple(tables[0].schema.names),
        )


@dataclass(frozen=True)
class _Table:
    """A file of groups of rows.

    Attributes:
        path: The file.
        schema: Of pyarrow.
        rows: Number of rows of each group.
        load: (group, columns) -> a pyarrow Table.
    """

    path: Path
    schema: Any
    rows: tuple[int, ...]
    load: Callable[[int, Sequence[str]], Any]

    def error(self, what: str, remedy: str) -> DataError:
        """An error about this file."""
        return DataError(what, where=str(self.path), remedy=remedy)

    def read(self, group: int, columns: Sequence[str]) -> Any:
        """Some columns of a group."""
        try:
            return self.load(group, columns)
        except Exception as error:  # pyarrow raises its own and the system's
            raise _unusable(error, self.path) from error


def _unusable(error: Exception, path: Path) -> DataError:
    return unreadable(errno_of(error), str(path)) or DataError(
        f"cannot be read: {error}", where=str(path), remedy=_REMEDY
    )


def _open(path: Path) -> _Table:
    pyarrow = load_extra("pyarrow", "reading Parquet and Arrow")
    parquet = load_extra("pyarrow.parquet", "reading Parquet")
    ipc = load_extra("pyarrow.ipc", "reading Arrow")
    try:
        with path.open("rb") as raw:
            is_parquet = raw.read(4) == b"PAR1"
        if is_parquet:
            file = parquet.ParquetFile(path)
            meta = file.metadata
            rows = tuple(meta.row_group(i).num_rows for i in range(meta.num_row_groups))
            table = _Table(path, file.schema_arrow, rows, file.read_row_group)
        else:
            batches = ipc.open_file(pyarrow.memory_map(str(path)))
            rows = tuple(batches.get_batch(i).num_rows for i in range(batches.num_record_batches))
            table = _Table(
                path,
                batches.schema,
                rows,
                lambda group, columns: pyarrow.Table.from_batches(
                    [batches.get_batch(group)]
                ).select(list(columns)),
            )
    except Exception as error:
        raise _unusable(error, path) from error
    names = table.schema.names
    if len(set(names)) != len(names) or not sum(rows):
        raise table.error("has no rows, or two columns of one name", _REMEDY)
    return table


def _find_label(table: _Table, label: str | None) -> str | None:
    names: list[str] = table.schema.names
    if label is not None:
        if label not in names:
            known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise table.error(
                f"has no column {label!r}; its columns are {known}",
                "name one of these with --label",
            )
        return label
    usual = [name for name in names if name.lower() in LABEL_NAMES]
    if len(usual) > 1:
        raise table.error(
            f"several columns could be the label: {', '.join(usual)}", "choose one with --label"
        )
    return usual[0] if usual else None


def _is_words(kind: Any) -> bool:
    types = load_extra("pyarrow", "reading Parquet").types
    value = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(value) or types.is_large_string(value))


def _is_number(kind: Any) -> bool:
    types = load_extra("pyarrow", "reading Parquet").types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _is_fixed(kind: Any) -> bool:
    types = load_extra("pyarrow", "reading Parquet").types
    return bool(types.is_fixed_size_list(kind)) and _is_number(kind.value_type)


def _check_columns(table: _Table, label: str | None) -> None:
    """Refuse columns that are no numbers, before any is read."""
    others = [field for field in table.schema if field.name != label]
    if not others:
        raise table.error("has a label but no other column", "add columns with numbers")
    for field in others:
        if not (_is_number(field.type) or _is_fixed(field.type)):
            raise table.error(
                f"column {field.name!r} is {field.type}: features are numbers, or lists of "
                "numbers of one fixed length",
                f"if it is the label, add --label {field.name}; otherwise leave it out, or cast it",
            )
    if label is not None:
        kind = table.schema.field(label).type
        if not (_is_number(kind) or _is_fixed(kind) or _is_words(kind)):
            raise table.error(f"the label {label!r} is {kind}", "write numbers or words")


def _words(tables: Sequence[_Table], name: str) -> tuple[str, ...] | None:
    """The different words of a label in alphabetical order; None: it holds no words."""
    if not _is_words(tables[0].schema.field(name).type):
        return None
    found: set[str] = set()
    for table in tables:
        for group in range(len(table.rows)):
            column = _column(table, table.read(group, [name]), name, group)
            found.update(column.unique().to_pylist())
    return tuple(sorted(found))


def _column(table: _Table, held: Any, name: str, group: int) -> Any:
    """A column of a group as one array without gaps."""
    column = held.column(name)
    if column.null_count:
        row = int(np.asarray(column.is_null()).argmax()) + sum(table.rows[:group])
        raise table.error(
            f"row {row} has no value in column {name!r}",
            "fill the gap, or leave out that row or column",
        )
    return column.combine_chunks()


def _source(table: _Table, label: str | None, words: tuple[str, ...] | None) -> Source:
    vectors = [f.name for f in table.schema if f.name != label and _is_number(f.type)]
    fixed = [f.name for f in table.schema if f.name != label and _is_fixed(f.type)]

    def parts(group: int) -> Iterator[tuple[str, NDArray[Any]]]:
        held = table.read(group, table.schema.names)
        if vectors:
            joined = np.empty((table.rows[group], len(vectors)), np.float32)
            with np.errstate(over="ignore"):  # infinities, which the writer refuses
                for position, name in enumerate(vectors):
                    joined[:, position] = _numbers(_column(table, held, name, group))
            yield "features", joined
        for name in fixed:
            yield name, _lists(table, _column(table, held, name, group), name)
        if label is not None:
            column = _column(table, held, label, group)
            yield "label", _label(table, column, label, words)

    @lru_cache(maxsize=1)  # consecutive reads are of one group
    def load(group: int) -> Arrays:
        return dict(parts(group))

    # Empty groups are no samples
    groups = [group for group, rows in enumerate(table.rows) if rows]

    def reader(group: int) -> Source:
        return Source(
            table.rows[group],
            lambda low, high: {name: array[low:high] for name, array in load(group).items()},
        )

    return concatenated([reader(group) for group in groups], {})


def _numbers(column: Any) -> NDArray[Any]:
    found: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return found


def _lists(table: _Table, column: Any, name: str) -> NDArray[Any]:
    values = column.flatten()
    if values.null_count:
        raise table.error(f"column {name!r} has lists with gaps", "fill the gaps")
    return _numbers(values).reshape(len(column), column.type.list_size)


def _label(table: _Table, column: Any, name: str, words: tuple[str, ...] | None) -> NDArray[Any]:
    if words is None:
        if _is_fixed(column.type):
            return _lists(table, column, name)
        values = _numbers(column)
        return values.astype(np.int64) if values.dtype.kind in "bi" else values
    cells = np.array(column.to_pylist(), object)
    return np.searchsorted(np.array(words, object), cells).astype(np.int64)
