"""Columns of tables: which are features and which are labels; labels of several columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.formats.source import LABEL_NAMES, Roles
from mpidl.errors import DataError

# (values of a label column: classes or real numbers; the names of the classes, if it holds words)
Label = tuple[NDArray[Any], tuple[str, ...] | None]


def choose_columns(
    names: Sequence[str], roles: Roles, path: Path
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The positions of the feature columns and of the label columns.

    Args:
        names: Of all columns.
        roles: Names of features and labels; without names of labels a usual name counts, without
            names of features all other columns are.
        path: The table, for messages.

    Raises:
        DataError: There is no such column, or several, or none is left as a feature.
    """
    labels = tuple(_position(names, name, "--label", path) for name in roles.labels)
    if not roles.labels:
        labels = tuple(
            column
            for column, name in enumerate(names)
            if name.lower() in LABEL_NAMES and name not in roles.features
        )
        if len(labels) > 1:
            known = ", ".join(repr(names[column]) for column in labels)
            raise DataError(
                f"several columns could be the label: {known}",
                where=str(path),
                remedy="choose with --label",
            )
    features = tuple(_position(names, name, "--feature", path) for name in roles.features)
    features = features or tuple(column for column in range(len(names)) if column not in labels)
    if not features:
        raise DataError(
            "has a label but no other column", where=str(path), remedy="add columns with numbers"
        )
    return features, labels


def _position(names: Sequence[str], wanted: str, option: str, path: Path) -> int:
    found = [column for column, name in enumerate(names) if name == wanted.strip()]
    if len(found) == 1:
        return found[0]
    what = "several columns" if found else "no column"
    known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise DataError(
        f"has {what} {wanted!r}; its columns are {known}",
        where=str(path),
        remedy=f"name one of these with {option}",
    )


def join_labels(names: Sequence[str], labels: Sequence[Label], path: Path) -> Label:
    """One label of the columns: (n,) of one column, (n, columns) of several.

    Args:
        names: Of the columns.
        labels: Their values.
        path: The table, for messages.

    Raises:
        DataError: One of several columns holds words or lists.
    """
    if len(labels) == 1:
        return labels[0]
    for name, (values, words) in zip(names, labels, strict=True):
        if words is not None or values.ndim > 1:
            held = "words" if words is not None else "lists"
            raise DataError(
                f"the label column {name!r} holds {held}, which cannot stand beside other labels",
                where=str(path),
                remedy="name one --label, or several columns of numbers",
            )
    return np.stack([values for values, _ in labels], axis=1), None


def label_candidates(columns: Sequence[str], features: NDArray[np.float32]) -> tuple[str, ...]:
    """Columns of whole numbers from 0 on with few different values; else all columns.

    Args:
        columns: Their names.
        features: (n, columns).
    """
    few = [
        name
        for name, values in zip(columns, features.T, strict=True)
        if (values == np.rint(values)).all()
        and values.min() >= 0
        and len(np.unique(values)) <= max(2, len(values) // 2)
    ]
    return tuple(few or columns)
