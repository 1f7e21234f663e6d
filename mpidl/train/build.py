"""Builds model, loss, optimizer and strategy from a configuration."""

from __future__ import annotations

import ml_dtypes
from msgspec.structs import asdict

from mpidl.backend import Ops
from mpidl.comm.context import Context
from mpidl.config import LossConfig, ModelConfig, OptimConfig, SyncConfig
from mpidl.errors import ConfigError, ShapeError
from mpidl.nn import LOSSES, FlatParameters, Loss, Model
from mpidl.optim import Optimizer, Parameters
from mpidl.sync import RunInfo
from mpidl.task import AUTO, Task
from mpidl.train.engine import AnyStrategy

Shape = tuple[int, ...]


def build_for_data(config: ModelConfig, task: Task, ops: Ops, precision: str = "float32") -> Model:
    """The model for the inputs and targets of a task, with zero parameters.

    Raises:
        ConfigError: Its outputs cannot be compared with the targets, or an option is impossible.
    """
    for outputs in task.output_sizes:
        model = build_model(
            config,
            task.input_shape,
            outputs,
            ops,
            precision,
            input_gradient=task.needs_input_gradient,
        )
        if task.fits(model.output_shape):
            return model
    raise task.refuse_model(config.name, model.output_shape)


def build_model(
    config: ModelConfig,
    shape: tuple[int, ...],
    outputs: int,
    ops: Ops,
    precision: str = "float32",
    *,
    input_gradient: bool = False,
) -> Model:
    """The model with zero parameters that computes in `precision`.

    Args:
        config: The model and its options.
        shape: Of an input sample.
        outputs: Classes, channels or elements of an output.
        ops: The backend.
        precision: Of activations and matrix products.
        input_gradient: Backward also computes the gradient of the input.

    Raises:
        ConfigError: An option of the model is impossible.
    """
    try:
        layers = config.chosen(shape, outputs, **asdict(config.options))
        compute_dtype = getattr(ml_dtypes, precision, precision)
        return Model(layers, shape, ops, compute_dtype=compute_dtype, input_gradient=input_gradient)
    except (ValueError, OverflowError, MemoryError) as error:
        what = f"cannot build {config.name!r}: {error}"
        raise ConfigError(what, where="model.name", remedy="check the options") from error


def admit_parts(model: Model, config: ModelConfig, shape: Shape, fields: int) -> None:
    """Let a model be trained on parts of its samples.

    Args:
        model: Made for whole samples.
        config: What it was made from.
        shape: Of a part, channels last.
        fields: How many axes a target has that are those of a sample.

    Raises:
        ConfigError: It cannot be applied to samples of another size.
    """
    whole = model.output_shape
    wanted = (*shape[:fields], *whole[fields:])
    try:
        layers = config.chosen(shape, whole[-1], **asdict(config.options))
        found = model.admit(layers, shape)
    except (ValueError, ShapeError) as error:
        raise _parts_refused(config.name, shape, str(error)) from error
    if found != wanted:
        raise _parts_refused(config.name, shape, f"outputs have the shape {found}, not {wanted}")


def _parts_refused(name: str, shape: Shape, why: str) -> ConfigError:
    return ConfigError(
        f"{name!r} cannot be trained on parts of samples, of shape {shape}: {why}",
        where="augment.patch",
        remedy="choose a model that is convolutional throughout (unet, fno, resnet18), or another "
        "size",
    )


def build_loss(config: LossConfig, task: Task, ops: Ops) -> Loss:
    """The loss; "auto" is the first that the task can be trained with."""
    if config.name == AUTO:
        return task.loss_of_sample(LOSSES[task.losses[0]](ops))
    loss: Loss = config.chosen(ops, **asdict(config.options))
    return task.loss_of_sample(loss)


def build_optimizer(config: OptimConfig, parameters: Parameters, ops: Ops) -> Optimizer:
    """The optimizer with fresh state."""
    optimizer: Optimizer = config.chosen(parameters, ops, **asdict(config.options))
    return optimizer


def build_strategy(
    config: SyncConfig, parameters: FlatParameters, context: Context, run: RunInfo
) -> AnyStrategy:
    """The strategy. Collective."""
    strategy: AnyStrategy = config.chosen(parameters, context, config.options, run)
    return strategy
