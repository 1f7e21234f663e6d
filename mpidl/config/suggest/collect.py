"""Collects the facts of data sets: manifests, and labels where they must be counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpidl.config.suggest.facts import Facts
from mpidl.data.manifest import NAME, Field, Manifest, load_manifest
from mpidl.data.mixture import Mixture
from mpidl.data.reader import Reader
from mpidl.data.training import read_labels
from mpidl.errors import ConfigError, DataError
from mpidl.options import Place
from mpidl.task import AUTO, TASKS, TaskConfig
from mpidl.task.spec import join_shapes

TRAIN, TESTS = "train", ("validation", "test")  # as `mpidl shard --split` names them
LOOKED_AT = 64 << 20  # bytes of labels of each sample with many
BYTE_MASK = 256  # values of masks in bytes
FEW = 20  # whole numbers: they look like classes
OTHER_LABEL = "shard the data with another --label, or name one: mpidl init --label NAME"


@dataclass(frozen=True)
class Wish:
    """What the user says of the data.

    Attributes:
        task: Name of the task, or "auto".
        features: Names of the input fields; empty: all.
        labels: Names of the label fields; empty: all.
        ranks: Number of ranks; None: any.
    """

    task: str = AUTO
    features: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    ranks: int | None = None


def find_parts(folder: Path) -> tuple[Path, Path | None]:
    """The training and the test data in a folder, which may be the training data itself."""
    if (folder / NAME).is_file() or not (folder / TRAIN / NAME).is_file():
        return folder, None
    found = (folder / name for name in TESTS if (folder / name / NAME).is_file())
    return folder / TRAIN, next(found, None)


def collect(folders: Sequence[Path], test: Path | None, wish: Wish, cores: int) -> Facts:
    """The facts of a data set.

    Args:
        folders: The training data.
        test: The test data.
        wish: What the user says.
        cores: Of this machine.

    Raises:
        DataError: A data set cannot be used, or they do not agree.
        ConfigError: A field or the task does not fit.
    """
    readers = [Reader(folder, driver="posix", verify=False) for folder in folders]
    with Mixture(readers) as mixture:
        facts = read_manifest(mixture.manifest, folders, test, wish, cores)
        return _look_at_labels(facts, readers, ", ".join(facts.folders))


def read_manifest(
    manifest: Manifest, folders: Sequence[Path], test: Path | None, wish: Wish, cores: int
) -> Facts:
    """The facts that a manifest tells.

    Args:
        manifest: Of all training data together.
        folders: See `collect`.
        test: See `collect`.
        wish: See `collect`.
        cores: See `collect`.

    Raises:
        DataError: The data have not what a task needs.
    """
    where = ", ".join(map(str, folders))
    if not manifest.samples:
        raise DataError("has no samples", where=where, remedy="shard data that has some")
    features = _features(manifest, wish, where)
    labels = _labels(manifest, wish, features, where)
    task = TaskConfig.read({"name": wish.task}, Place()).decide(AUTO, features, labels)[0]
    return Facts(
        tuple(map(str, folders)),
        None if test is None else str(test),
        manifest,
        features,
        labels,
        task,
        cores=cores,
        ranks=wish.ranks,
    )


def _chosen(
    manifest: Manifest, role: Literal["feature", "label"], names: Sequence[str], where: str
) -> dict[str, Field]:
    fitting = [name for name, field in manifest.fields.items() if field.role == role]
    asked: list[str | None] = [*(names or fitting)] or [None]
    try:
        wanted = [manifest.field_with_role(role, name, where) for name in asked]
    except DataError as error:
        if not names:
            raise
        raise error.replace(remedy=f"name one of these with --{role}") from None
    return {name: manifest.fields[name] for name in wanted}


def _features(manifest: Manifest, wish: Wish, where: str) -> dict[str, Field]:
    features = _chosen(manifest, "feature", wish.features, where)
    _check_joinable(features, "feature", where)
    return features


def _labels(
    manifest: Manifest, wish: Wish, features: Mapping[str, Field], where: str
) -> dict[str, Field]:
    if wish.task != AUTO and not TASKS[wish.task].needs_label:
        return {}
    roles = {field.role for field in manifest.fields.values()}
    tokens = all(field.classes and len(field.shape) == 1 for field in features.values())
    if tokens and wish.task == AUTO and "label" not in roles and not wish.labels:
        return {}
    try:
        labels = _chosen(manifest, "label", wish.labels, where)
    except DataError as error:
        trajectories = all(
            len(field.shape) > 1 and np.dtype(field.dtype).kind == "f"
            for field in features.values()
        )
        if wish.labels or "label" in roles or not trajectories:
            raise
        raise error.replace(
            remedy="where samples are trajectories (t, ...), whose next frame is predicted, add "
            "--task rollout; else shard the data again with --label NAME"
        ) from None
    real = all(np.dtype(field.dtype).kind == "f" for field in labels.values())
    if len(labels) > 1 and wish.task != "multilabel" and not real:
        raise DataError(
            f"has several labels, of which not all are real numbers: {', '.join(labels)}",
            where=where,
            remedy="name one with --label, or several of real numbers; for labels of 0 and 1 "
            "choose --task multilabel",
        )
    _check_joinable(labels, "label", where)
    both = [name for name in labels if name in features]
    if both:
        raise DataError(
            f"{both[0]!r} is both the feature and the label: a model would only copy it",
            where=where,
            remedy="name different fields with --feature and --label",
        )
    return labels


def _check_joinable(fields: Mapping[str, Field], role: str, where: str) -> None:
    """Refuse fields that cannot be read as one."""
    try:
        join_shapes([field.shape for field in fields.values()], "image")
    except DataError as error:
        raise error.replace(
            where=where, remedy=f"name one of {', '.join(fields)} with --{role}"
        ) from None


def _look_at_labels(facts: Facts, readers: Sequence[Reader], where: str) -> Facts:
    """Count classes, and refuse labels from which nothing can be learned."""
    if len(facts.labels) != 1:
        return facts
    (name, field), *_ = facts.labels.items()
    if facts.task == "regression":
        if field.statistics is not None and field.statistics.std == 0:
            raise DataError(
                f"the label {name!r} is {field.statistics.mean:g} in all samples: there is "
                "nothing to learn",
                where=where,
                remedy=OTHER_LABEL,
            )
        return replace(facts, look_like_classes=_looks_like_classes(name, field, readers))
    if not field.classes or np.dtype(field.dtype).kind not in "biu":
        return facts
    if facts.task == "classification" and not field.shape:
        labels, classes = read_labels(readers, name)
        facts = replace(facts, counts=_count(labels, classes))
    elif facts.task == "segmentation":
        facts = _count_pixels(facts, readers, name, field)
    if facts.classes < 2 or (facts.counts and sum(map(bool, facts.counts)) < 2):
        raise DataError(
            f"the label {name!r} has one class only: there is nothing to learn",
            where=where,
            remedy=OTHER_LABEL,
        )
    return facts


def _count(labels: NDArray[np.int64], classes: int) -> tuple[int, ...]:
    return tuple(np.bincount(labels, minlength=classes).tolist())


def _count_pixels(facts: Facts, readers: Sequence[Reader], name: str, field: Field) -> Facts:
    """Pixels of each class in evenly spaced masks; 255 beside few classes is no class."""
    values = _sample(readers, name, field)
    inside = values[(values >= 0) & (values < facts.classes)].astype(np.int64)
    counts = _count(inside, facts.classes)
    known = [k for k, count in enumerate(counts) if count]
    outside = facts.classes == BYTE_MASK and len(known) > 2 and known[-1] == BYTE_MASK - 1
    if outside and known[-2] < BYTE_MASK // 2:
        return replace(facts, counts=counts[: known[-2] + 1], ignore=BYTE_MASK - 1)
    return replace(facts, counts=counts)


def _sample(readers: Sequence[Reader], name: str, field: Field) -> NDArray[Any]:
    """The values of evenly spaced samples of each data set, (n, ...)."""
    found = []
    for reader in readers:
        with Reader(reader.folder, driver="posix", verify=False, fields=[name]) as own:
            most = max(1, LOOKED_AT // max(1, field.sample_bytes))
            count = min(len(own), most)
            if count:
                rows = [index * len(own) // count for index in range(count)]
                found.append(own.read([(row, row + 1) for row in rows])[name])
    return np.concatenate(found)


def _looks_like_classes(name: str, field: Field, readers: Sequence[Reader]) -> bool:
    """Whether real numbers, one a sample, are few whole ones."""
    if field.shape not in ((), (1,)):
        return False
    values = np.unique(_sample(readers, name, field))
    return len(values) <= FEW and bool((values == np.rint(values)).all())


def check_test(folder: Path | None, folders: Sequence[Path]) -> Manifest | None:
    """The manifest of the test data.

    Raises:
        ConfigError: They are training data too.
    """
    if folder is None:
        return None
    if folder.resolve() in {one.resolve() for one in folders}:
        raise ConfigError(
            "is training data too: results on it would flatter",
            where=f"--test {folder}",
            remedy="name other data, or divide these: mpidl shard --split 0.9,0.1",
        )
    return load_manifest(folder)
