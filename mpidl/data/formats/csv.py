"""Tables of text (CSV): separator, header and decimal commas are detected; errors name the line.

NumPy's and pyarrow's readers do none of this, and accept files that a person would not: ragged
rows, unbalanced quotes, commas that group thousands.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.formats.source import NO_ROLES, Importer, Roles, Source, source_from_arrays
from mpidl.data.formats.table import choose_columns, join_labels, label_candidates
from mpidl.data.manifest import Arrays
from mpidl.errors import DataError
from mpidl.files import reading
from mpidl.options import Section

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "|"}
SAMPLE = 200  # lines that are read to detect separator and header
_WHOLE = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE
)


class CsvImporter(Importer):
    """A table: its numeric columns become one vector "features", the label columns "label"."""

    INPUT = "one table with a line per sample and any usual separator, gzipped or not"
    SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
    HEEDS_ROLES = True

    class Options(Section, frozen=True):
        """How to read a table.

        Attributes:
            header: Whether the first line names the columns (default: detected).
        """

        header: bool | None = None

    @classmethod
    def open(cls, paths: Sequence[Path], roles: Roles, options: Options) -> Source:
        """See `Importer.open`."""
        (path,) = paths
        table = read_table(path, roles, options.header)
        arrays: Arrays = {"features": table.features}
        if table.label is not None:
            arrays["label"] = table.label
        return replace(
            source_from_arrays(arrays, str(path)),
            class_names=table.class_names,
            label=None if table.label is None else "label",
            candidates=table.candidates,
            notes=table.notes,
        )


@dataclass(frozen=True)
class Table:
    """A table in numbers.

    Attributes:
        columns: Names of the feature columns.
        features: (n, c) float32.
        label: (n,), or (n, labels) of several columns: int64 classes, or float32 real numbers;
            or None.
        class_names: Names of the classes, where the labels are words.
        candidates: Columns that could be the label, where there is none.
        notes: What was assumed, for people.
    """

    columns: tuple[str, ...]
    features: NDArray[np.float32]
    label: NDArray[Any] | None = None
    class_names: tuple[str, ...] | None = None
    candidates: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Rows:
    """The cells of a file.

    Attributes:
        path: The file, for messages.
        separator: Between columns.
        cells: The rows.
        lines: lines[i] is the number of the line where row i ends.
    """

    path: Path
    separator: str
    cells: list[list[str]]
    lines: list[int]

    def error(self, what: str, remedy: str) -> DataError:
        """An error about this file."""
        return DataError(what, where=str(self.path), remedy=remedy)

    def is_number(self, cell: str) -> bool:
        """Whether a cell holds a number."""
        return _NUMBER.fullmatch(self.with_point(cell)) is not None

    def with_point(self, cell: str) -> str:
        """The cell with a decimal point in place of a decimal comma."""
        return cell.strip() if self.separator == "," else cell.strip().replace(",", ".")


def read_table(path: Path, roles: Roles = NO_ROLES, header: bool | None = None) -> Table:
    """Read a table: numeric columns are features; labels are whole or real numbers, or words.

    Args:
        path: The file, gzipped if it ends in .gz.
        roles: Names of feature and label columns, see `choose_columns`.
        header: Whether the first line names the columns (None: detected).

    Raises:
        DataError: It is no such table; the message names file, line and column.
    """
    rows = _read_rows(path)
    notes = []
    has_header = _has_header(rows) if header is None else header
    if has_header:
        names = [cell.strip() for cell in rows.cells[0]]
        rows = _Rows(path, rows.separator, rows.cells[1:], rows.lines[1:])
    else:
        names = [f"column{number}" for number in range(1, len(rows.cells[0]) + 1)]
        if header is None:
            notes.append(
                f"the first line is no header: the columns are named column1 to {names[-1]} "
                "(--header if it is one)"
            )
    if not rows.cells:
        raise rows.error("has no samples below its header", "check the file; or add --no-header")
    if rows.separator != "," and _has_decimal_commas(rows):
        notes.append("commas within numbers are taken for decimal commas: 1,5 is 1.5")
    kept, labels = choose_columns(names, roles, path)
    features = _parse_features(rows, names, kept)
    columns = tuple(names[column] for column in kept)
    if not labels:
        candidates = label_candidates(columns, features)
        return Table(columns, features, candidates=candidates, notes=tuple(notes))
    parsed = [_parse_label(rows, names[column], column) for column in labels]
    values, classes = join_labels([names[column] for column in labels], parsed, path)
    return Table(columns, features, values, classes, notes=tuple(notes))


def _read_rows(path: Path) -> _Rows:
    """All lines that are not empty, split at the separator.

    Raises:
        DataError: They do not have equally many columns.
    """
    remedy = (
        "save it as UTF-8 text (iconv -f latin1 -t utf-8), with columns separated by comma, "
        "semicolon, tab or |"
    )
    try:
        with (
            reading(path),
            gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file,
        ):
            text = file.read().decode("utf-8-sig")
        separator = _separator(text)
        numbered = _split_rows(text, separator)
    except (UnicodeDecodeError, csv.Error, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot be read as a table: {error}", where=str(path), remedy=remedy
        ) from error
    rows = _Rows(path, separator, [row for row, _ in numbered], [line for _, line in numbered])
    if not rows.cells:
        raise rows.error("is empty", "check the path")
    width = Counter(map(len, rows.cells)).most_common(1)[0][0]
    ragged = [(line, len(row)) for row, line in numbered if len(row) != width]
    if ragged:
        more = f" ({len(ragged)} such lines)" if len(ragged) > 1 else ""
        raise rows.error(
            f"line {ragged[0][0]} has {ragged[0][1]} column(s), most lines have {width}{more}; "
            f"the separator found is the {SEPARATORS[separator]}",
            'correct that line; text that holds the separator belongs in "quotes"',
        )
    return rows


def _split_rows(text: str, separator: str) -> list[tuple[list[str], int]]:
    """Rows that are not empty, with the lines where they end.

    Raises:
        csv.Error: A row is malformed, or a quote would swallow the lines behind it.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    found: list[tuple[list[str], int]] = []
    begins = 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                found.append((row, reader.line_num))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(
            f"the row from line {begins} on has a quote too many or too few, or a huge cell "
            f"({error})"
        ) from error
    return found


def _separator(text: str) -> str:
    """The separator that splits most lines alike; of several, the one that leaves most numbers."""
    lines = text.splitlines()[:SAMPLE]

    def score(separator: str) -> tuple[float, float, int]:
        split = [row for row in csv.reader(lines, delimiter=separator) if row]
        width, count = Counter(map(len, split)).most_common(1)[0] if split else (0, 0)
        if width < 2:
            return 0.0, 0.0, 0
        rows = _Rows(Path(), separator, split, [])
        cells = [cell for row in split for cell in row]
        return count / len(split), sum(map(rows.is_number, cells)) / len(cells), width

    return max(SEPARATORS, key=score)


def _has_header(rows: _Rows) -> bool:
    """Whether the first line names columns: no number in it, or words above a column of numbers.

    Also numbers that count from 0, as pandas numbers columns, next to names.
    """
    first, rest = rows.cells[0], rows.cells[1:SAMPLE]
    numeric = [rows.is_number(cell) for cell in first]
    if not any(numeric):
        return True
    for column, cell in enumerate(first):
        if (
            not numeric[column]
            and cell.strip()
            and rest
            and all(rows.is_number(row[column]) for row in rest)
        ):
            return True
    counted = [cell.strip() for cell, is_number in zip(first, numeric, strict=True) if is_number]
    return 2 <= len(counted) < len(first) and counted == [
        str(number) for number in range(len(counted))
    ]


def _has_decimal_commas(rows: _Rows) -> bool:
    """Whether there are numbers with commas.

    Raises:
        DataError: Others have points: then a comma may group thousands.
    """
    found: dict[str, tuple[int, str]] = {}
    for line, row in zip(rows.lines, rows.cells, strict=True):
        for cell in row:
            for mark in ",.":
                if mark in cell and mark not in found and rows.is_number(cell):
                    found[mark] = line, cell.strip()
    if len(found) == 2:
        one, other = found[","], found["."]
        raise rows.error(
            f"line {one[0]} has the number {one[1]!r} and line {other[0]} the number {other[1]!r}: "
            "a comma may be a decimal comma or group thousands",
            "write all numbers with points and without separators of thousands",
        )
    return "," in found


def _parse_features(rows: _Rows, names: Sequence[str], kept: Sequence[int]) -> NDArray[np.float32]:
    features = np.empty((len(rows.cells), len(kept)), np.float32)
    for number, row in enumerate(rows.cells):
        cells = [row[column] for column in kept]
        try:
            if "_" in "".join(cells):
                raise ValueError  # which Python would take for numbers: 1_000
            with np.errstate(over="ignore"):  # beyond float32 is infinity, which the writer refuses
                features[number] = (
                    cells if rows.separator == "," else [rows.with_point(cell) for cell in cells]
                )
        except ValueError:
            raise _not_numeric(rows, names, kept, number) from None
    return features


def _not_numeric(rows: _Rows, names: Sequence[str], kept: Sequence[int], number: int) -> DataError:
    """Which cell is no number, and whether its column may be the label."""
    for column in kept:
        cell = rows.cells[number][column].strip()
        if not rows.is_number(cell):
            break
    if not cell:
        return rows.error(
            f"line {rows.lines[number]} has no value in column {names[column]!r}",
            "fill the gap, or leave out that line or column",
        )
    numbers = sum(rows.is_number(row[column]) for row in rows.cells)
    remedy = f"correct that cell: {numbers} of {len(rows.cells)} values in this column are numbers"
    if not numbers:
        remedy = (
            f"if it is the label, add --label {names[column]}; "
            "otherwise write the column in numbers or leave it out"
        )
    return rows.error(
        f"line {rows.lines[number]} has {cell!r} in column {names[column]!r}, "
        "which is not a number",
        remedy,
    )


def _parse_label(
    rows: _Rows, name: str, column: int
) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    """Whole numbers as they are, real numbers as float32, words numbered alphabetically.

    Returns:
        The labels, (n,), and the words, if they are words.
    """
    cells = [row[column].strip() for row in rows.cells]
    numeric = [rows.is_number(cell) for cell in cells]
    if not all(cells):
        what = f"line {rows.lines[cells.index('')]} has no label in column {name!r}"
        raise rows.error(what, "fill the gap, or leave out that line")
    if any(numeric) and not all(numeric):
        number, word = numeric.index(True), numeric.index(False)
        raise rows.error(
            f"the label column {name!r} mixes numbers (line {rows.lines[number]}: "
            f"{cells[number]!r}) and words (line {rows.lines[word]}: {cells[word]!r})",
            "repair these lines; where all of them are names of classes, write them as words",
        )
    if not any(numeric):
        classes = {word: index for index, word in enumerate(sorted(set(cells)))}
        return np.array([classes[word] for word in cells], np.int64), tuple(classes)
    return _parse_numeric_label(rows, name, cells), None


def _parse_numeric_label(rows: _Rows, name: str, cells: list[str]) -> NDArray[Any]:
    values = np.array([float(rows.with_point(cell)) for cell in cells])
    if not np.isfinite(values).all():
        number = int(np.flatnonzero(~np.isfinite(values))[0])
        raise rows.error(
            f"line {rows.lines[number]} has the label {cells[number][:40]!r} in column {name!r}, "
            "which is not finite",
            "correct that label, or leave out that line",
        )
    if (values != np.rint(values)).any():
        return values.astype(np.float32)
    if np.abs(values).max() >= 2.0**63:
        raise rows.error(
            f"the label column {name!r} holds numbers too large for a class",
            "number the classes from 0",
        )
    if all(_WHOLE.fullmatch(cell) for cell in cells):
        return np.array([int(cell) for cell in cells], np.int64)
    return values.astype(np.int64)  # 0.0, 1.0, 2.0: classes that a program wrote as floats
