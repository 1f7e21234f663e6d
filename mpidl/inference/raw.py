"""Raw files as samples for a model: fields by their names, targets too where they are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.formats.source import Source, infer_role
from mpidl.data.manifest import Arrays, Field, new_manifest
from mpidl.errors import DataError
from mpidl.inference.ids import KEY, Columns, encode_names, find_key, make_ids, name_bytes
from mpidl.task import FieldSpec, Task

NAME_IT = "name the field, or the column of a table, with --label NAME; or leave out --metrics"


class RawSamples:
    """Raw files as samples; a lone feature takes the name that the model knows, a target too.

    Args:
        source: The files.
        task: What the model was trained for.
        where: The files, for messages.
        scored: Read the targets too.

    Raises:
        DataError: They do not have what the model takes.
    """

    def __init__(self, source: Source, task: Task, where: str, *, scored: bool = False) -> None:
        self._source = source
        self._task = task
        self._spec = spec = task.spec
        self._where = where
        self.units: Mapping[str, str] = source.units
        first = source.read(0, min(1, source.samples))
        self._names = self._choose_features(first)  # ours -> the source's
        self._renumbered: NDArray[np.int64] | None = None
        if scored:
            self._names |= self._choose_targets(first)
            self._names |= {name: name for name in task.extra_fields if name in first}
            self._renumbered = self._renumber()
            task.check(new_manifest("in-place", self._describe(first), ()), where)
        kinds = {name: (array.shape[1:], array.dtype.str) for name, array in first.items()}
        taken = {*self._names.values(), *spec.field_names}
        self._key = "" if source.keys else find_key(kinds, taken)
        self._width = max(map(len, map(name_bytes, source.keys or ())), default=0)

    def _choose_features(self, first: Arrays) -> dict[str, str]:
        """The input fields: our name -> that of the source."""
        spec, source = self._spec, self._source
        labels = {field.name for field in spec.target.fields}
        features = [
            name
            for name, array in first.items()
            if name not in labels and infer_role(name, array, source.label) == "feature"
        ]
        names = {field.name: field.name for field in spec.features}
        if len(spec.features) == 1 and spec.features[0].name not in first and features:
            names = {spec.features[0].name: features[0]}
        for field in spec.features:
            own = names[field.name]
            if own not in first or first[own].shape[1:] != field.shape:
                found = {name: array.shape[1:] for name, array in first.items()}
                raise DataError(
                    f"the model takes samples of shape {field.shape} in {field.name!r}, found "
                    f"{found}",
                    where=self._where,
                    remedy="give data of that shape; a label among its columns is left out with "
                    "--label NAME",
                )
        return names

    def _choose_targets(self, first: Arrays) -> dict[str, str]:
        """The label fields: those that the user names, of the model's names, or the only label."""
        source, wanted = self._source, [field.name for field in self._spec.target.fields]
        named = [name for name, role in source.roles.items() if role == "label" and name in first]
        if not named or set(wanted) <= set(named):
            named = wanted
        if not set(named) <= set(first):
            taken = set(self._names.values())
            named = [
                name
                for name, array in first.items()
                if name not in taken and infer_role(name, array, source.label) == "label"
            ]
        if len(named) != len(wanted):
            raise DataError(
                f"metrics need the target {self._spec.target.names!r}, found "
                f"{', '.join(map(repr, first))}",
                where=self._where,
                remedy=NAME_IT,
            )
        return dict(zip(wanted, named, strict=True))

    def _renumber(self) -> NDArray[np.int64] | None:
        """Number of a class here -> that of the model, where both have words for them."""
        ours, theirs = self._spec.target.class_names, self._source.class_names
        if not ours or not theirs or ours == theirs:
            return None
        numbers = {word: number for number, word in enumerate(ours)}
        unknown = [word for word in theirs if word not in numbers]
        if unknown:
            raise DataError(
                f"the class {unknown[0]!r} is none of the model: {', '.join(ours[:20])}",
                where=self._where,
                remedy="correct the labels, or leave out --metrics",
            )
        return np.array([numbers[word] for word in theirs], np.int64)

    def _describe(self, first: Arrays) -> dict[str, Field]:
        """The fields as a data set would describe them; classes are counted sample by sample."""
        targets = {field.name: field for field in self._spec.target.fields}
        found = {}
        for name, own in self._names.items():
            array = first[own]
            if array.dtype.kind not in "biuf":
                what = f"{own!r} holds {array.dtype}, but metrics compare numbers"
                raise DataError(what, where=self._where, remedy=NAME_IT)
            shape, dtype = array.shape[1:], array.dtype.name
            if name in targets:
                shape = _trim(shape, targets[name])
                # whole numbers are amounts to a model of real ones
                dtype = "float64" if self._spec.target.classes is None else dtype
            found[name] = Field(dtype, shape, "label" if name in targets else "feature")
        return found

    def __len__(self) -> int:
        return self._source.samples

    def read(self, low: int, high: int) -> Arrays:
        """See `Samples`."""
        found = self._source.read(low, high)
        arrays = {name: np.asarray(found[own]) for name, own in self._names.items()}
        for field in self._spec.target.fields:
            if field.name in arrays:
                arrays[field.name] = self._target(field, arrays[field.name], low)
        for field in self._spec.features:
            self._check_feature(field.name, arrays[field.name], low)
        if self._key:
            arrays[self._key] = np.asarray(found[self._key])
        return arrays

    def ids(self, low: int, arrays: Arrays) -> Columns:
        """See `Samples`."""
        source = self._source
        rows = np.arange(low, low + len(next(iter(arrays.values()))))
        numbers = rows if source.numbers is None else source.numbers[rows]
        found = make_ids(numbers, arrays, self._key)
        if source.keys:
            found[KEY] = encode_names([source.keys[number] for number in numbers], self._width)
        return found

    def _target(self, field: FieldSpec, array: NDArray[Any], low: int) -> NDArray[Any]:
        """A target in the shape and the numbers of the model, checked."""
        array = array.reshape(len(array), *_trim(array.shape[1:], field))
        classes = self._spec.target.classes
        if classes is None:
            self._check_real(field.name, array, low)
            return array
        known = classes if self._renumbered is None else len(self._renumbered)
        bad = (array < 0) | (array >= known)
        ignored = getattr(self._task.options, "ignore", -1)
        if ignored >= 0:
            bad &= array != ignored
        self._refuse(bad, field.name, array, low, f"must lie in [0, {known})")
        return array if self._renumbered is None else self._renumbered[array.astype(np.int64)]

    def _check_real(self, name: str, array: NDArray[Any], low: int) -> None:
        """Refuse targets that are not finite, or no labels of 0 and 1 where these are wanted."""
        if self._spec.task == "multilabel":
            self._refuse((array != 0) & (array != 1), name, array, low, "must be 0 or 1")
        self._refuse(~np.isfinite(array), name, array, low, "must be finite")

    def _check_feature(self, name: str, array: NDArray[Any], low: int) -> None:
        """Refuse numbers beyond a vocabulary, and NaN and infinities, as a data set does."""
        if self._task.gives_tokens:
            tokens = self._spec.target.classes or 0
            bad = (array < 0) | (array >= tokens)
            self._refuse(bad, name, array, low, f"must lie in [0, {tokens})")
        elif array.dtype.kind == "f":
            self._refuse(~np.isfinite(array), name, array, low, "must be finite")

    def _refuse(
        self, bad: NDArray[np.bool_], name: str, array: NDArray[Any], low: int, rule: str
    ) -> None:
        if bad.any():
            place = np.unravel_index(int(bad.argmax()), bad.shape)
            number = self._source.number(low + int(place[0]))
            raise DataError(
                f"sample {number} has {name!r} = {array[place]}, but values {rule}",
                where=self._where,
                remedy="correct the file, or leave this sample out",
            )

    def close(self) -> None:
        """See `Samples`: importers close their files themselves."""


def _trim(shape: tuple[int, ...], wanted: FieldSpec) -> tuple[int, ...]:
    """The shape of a target; one number may be an array of one."""
    return wanted.shape if {shape, wanted.shape} <= {(), (1,)} else shape
