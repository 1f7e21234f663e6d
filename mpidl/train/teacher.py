"""The trained model that a run learns from (see `mpidl.task.distill`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Array, Ops
from mpidl.comm.context import Context
from mpidl.config import Config, build_config
from mpidl.errors import CheckpointError, ConfigError
from mpidl.nn import Forward, Model
from mpidl.nn.model import ModelBackward
from mpidl.task import FieldSpec, InputSpec, Task
from mpidl.task.distill import DistilledLoss
from mpidl.task.spec import channel_shape
from mpidl.train import checkpoint as ckpt
from mpidl.train.admission import Gate
from mpidl.train.build import build_for_data
from mpidl.train.checkpoint.format import compute_digest
from mpidl.train.inputs import Scale

SETTING = "task.distill"


class Teacher:
    """A trained model that sees the inputs of another one. Its parameters stay what they are.

    Args:
        saved: Its checkpoint.
        config: Of the run that learns from it.
        task: Of that run.
        model: Of that run.

    Attributes:
        model: The trained model.
        config: Of its own run.
        digest: Tells its parameters from others.

    Raises:
        ConfigError: Its outputs for these inputs cannot be compared with those of `model`.
        CheckpointError: The checkpoint is not what was written.
    """

    def __init__(self, saved: ckpt.Checkpoint, config: Config, task: Task, model: Model) -> None:
        where = str(saved.path)
        self.config = build_config(saved.meta.config, where)
        spec = msgspec.convert(saved.meta.inputs, InputSpec)
        _check(spec, task.spec, where)
        own = self.config.task.create(spec)
        self.ops = model.ops
        self.model = build_for_data(self.config.model, own, model.ops, config.train.precision)
        if self.model.takes_ids != model.takes_ids:
            raise _refused("one of the two models takes whole numbers, the other real ones", where)
        self._load(saved)
        layout = spec.layout
        self._inputs = _rescaled(task.spec.features, spec.features, layout, self.ops)
        self._outputs = _rescaled(spec.target.fields, task.spec.target.fields, layout, self.ops)
        self._target_shape = spec.target.shape
        self._space = model.ops.workspace()

    def _load(self, saved: ckpt.Checkpoint) -> None:
        parameters = self.model.parameters
        pairs = [("parameters", parameters.values)]
        pairs += [("state", parameters.state)] if parameters.state.size else []
        digests = []
        for name, array in pairs:
            held = saved.buffers.get(name, np.empty(0))
            if held.shape != array.shape or held.dtype != array.dtype:
                raise CheckpointError(
                    "does not fit its own model",
                    where=str(saved.path),
                    remedy="use the mpidl that wrote it",
                )
            array[...] = self.ops.to_device(held)
            digests.append(compute_digest(held))
        self.digest = "".join(digests)

    def outputs(self, x: Array) -> Array:
        """What it gives for inputs of the other model, valid until the next call.

        Args:
            x: (n, *input shape), normalized for the other model.

        Returns:
            (n, ...): logits, or values in the normalization of the other model's targets.
        """
        if self._inputs is not None:
            held = self._space.get("x", x.shape, x.dtype)
            self._inputs.apply(x, held)
            x = held
        y = self.model.forward(x)[0]
        if self._outputs is None:
            return y
        values = y.reshape(len(y), *self._target_shape)
        out = self._space.get("y", values.shape, y.dtype)
        self._outputs.apply(values, out)
        return out


class Taught:
    """What samples pass through in training: the teacher sees them before the model does.

    Args:
        through: What they pass through without a teacher.
        teacher: The teacher.
        loss: It is told of the teacher's outputs.
    """

    def __init__(self, through: Forward, teacher: Teacher, loss: DistilledLoss) -> None:
        self.through = through
        self.teacher = teacher
        self.loss = loss
        self.output_shape = through.output_shape

    def forward(self, x: Array, *, train: bool = False) -> tuple[Array, ModelBackward]:
        """See `Model.forward`."""
        if train:
            self.loss.taught = self.teacher.outputs(x)
        return self.through.forward(x, train=train)


def open_teacher(
    config: Config, task: Task, model: Model, context: Context, say: Callable[[str], None]
) -> Teacher | None:
    """The teacher that a configuration names; None: it names none. Collective.

    Args:
        config: Of the run.
        task: Of the run.
        model: Of the run.
        context: The ranks.
        say: Told what a user should know.

    Raises:
        MpidlError: It cannot be loaded, or is of no use; on all ranks together.
    """
    run = config.task.distill.run
    if not run:
        return None
    with context.fail_together("checking the teacher"):
        if task.soft is None:
            raise _refused(f"outputs of the task {task.spec.task!r} are not compared with those "
                           "of a teacher", run)  # fmt: skip
        output = Path(config.train.output).resolve()
        if output == Path(run).resolve() or output in Path(run).resolve().parents:
            raise ConfigError(
                "the teacher lies in the output folder of the run itself",
                where=SETTING,
                remedy="choose another train.output",
            )

    def read() -> ckpt.Checkpoint:
        file = ckpt.find(Path(run))
        with Gate.of(config.security).file(file):
            return ckpt.read(file)

    saved = ckpt.load_for(context, read, f"loading the teacher {run}")
    with context.fail_together("building the teacher"):
        teacher = Teacher(saved, config, task, model)
    say(
        f"teacher: {teacher.config.model.name}, {teacher.model.parameters.count:,} parameters, "
        f"of {saved.path}"
    )
    return teacher


def _check(own: InputSpec, other: InputSpec, where: str) -> None:
    """Refuse a teacher of another task, of other inputs, or of other targets."""
    mine, theirs = own.target, other.target
    pairs = (
        ("the task", own.task, other.task),
        ("inputs", [(f.name, f.shape) for f in own.features],
         [(f.name, f.shape) for f in other.features]),
        ("inputs of the shape", own.shape, other.shape),
        ("targets", [(f.name, f.shape) for f in mine.fields],
         [(f.name, f.shape) for f in theirs.fields]),
        ("this number of classes", mine.classes, theirs.classes),
    )  # fmt: skip
    for what, had, wanted in pairs:
        if had != wanted:
            raise _refused(f"it was trained for {what} {had!r}, this run has {wanted!r}", where)
    if mine.class_names and theirs.class_names and mine.class_names != theirs.class_names:
        raise _refused("its classes have other names, or another order", where)


def _refused(why: str, where: str) -> ConfigError:
    return ConfigError(
        f"cannot be the teacher of this run: {why}",
        where=where,
        remedy=f"name a run of the same task on the same fields in {SETTING}, or remove it",
    )


def _rescaled(
    given: Iterable[FieldSpec], wanted: Iterable[FieldSpec], layout: str, ops: Ops
) -> Scale | None:
    """From the normalization of some fields to another one; None: they are the same."""
    (mean, std), (to_mean, to_std) = (_normalization(fields, layout) for fields in (given, wanted))
    if np.array_equal(mean, to_mean) and np.array_equal(std, to_std):
        return None
    return Scale((to_mean - mean) / std, to_std / std, ops)


def _normalization(
    fields: Iterable[FieldSpec], layout: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of all channels of some fields, float64."""
    means, stds = [np.empty(0)], [np.empty(0)]
    for field in fields:
        width = channel_shape(field.shape, layout)[-1]
        means.append(np.resize(field.mean, width))
        stds.append(np.resize(field.std, width))
    return np.concatenate(means), np.concatenate(stds)
