"""Builds model, loss, optimizer and strategy from a configuration."""

from __future__ import annotations

import math

import ml_dtypes
from msgspec.structs import asdict

from mpidl.backend import Ops
from mpidl.comm.context import Context
from mpidl.config import LossConfig, ModelConfig, OptimConfig, SyncConfig
from mpidl.errors import ConfigError
from mpidl.nn import FlatParameters, Loss, Model
from mpidl.nn.losses.base import squeeze
from mpidl.optim import Optimizer, Parameters
from mpidl.sync import RunInfo
from mpidl.train.engine import AnyStrategy
from mpidl.train.inputs import InputSpec, Shape


def build_for_data(
    config: ModelConfig, spec: InputSpec, ops: Ops, precision: str = "float32"
) -> Model:
    """The model for inputs and targets of `spec`, with zero parameters.

    Raises:
        ConfigError: Its outputs cannot be compared with the targets, or an option is impossible.
    """
    if spec.classes is not None:
        return _build_classifier(config, spec, spec.classes, ops, precision)
    target = spec.target_shape
    # a model's outputs are channels behind the axes of a field, or one vector
    channels = target[-1] if target else 1
    for outputs in dict.fromkeys((channels, 1, math.prod(target))):
        model = build_model(config, spec.shape, outputs, ops, precision)
        if fits(model.output_shape, target):
            return model
    raise ConfigError(
        f"{config.name!r} has outputs of shape {model.output_shape} for a sample, but the label "
        f"{spec.label!r} has the shape {target}",
        where="model",
        remedy="choose a model whose outputs have that shape (unet or fno for fields, mlp for "
        "vectors), other options, or another label (data.label)",
    )


def fits(output_shape: Shape, target_shape: Shape) -> bool:
    """Whether outputs can be compared with real targets: the same shape, or all in one vector."""
    same = squeeze(output_shape) == squeeze(target_shape)
    return same or output_shape == (math.prod(target_shape),)


def _build_classifier(
    config: ModelConfig, spec: InputSpec, classes: int, ops: Ops, precision: str
) -> Model:
    model = build_model(config, spec.shape, classes, ops, precision)
    if model.output_shape != (classes,):
        raise ConfigError(
            f"{config.name!r} gives numbers of shape {model.output_shape} for a sample, but with "
            "classes as labels 'mpidl train' trains classifiers, which give one for each of the "
            f"{classes} classes",
            where="model",
            remedy="choose another model or other options; train texts through the API "
            "(docs/models.md), and fields with real labels and a loss such as mse",
        )
    return model


def build_model(
    config: ModelConfig, shape: Shape, outputs: int, ops: Ops, precision: str = "float32"
) -> Model:
    """The model with zero parameters that computes in `precision`.

    Args:
        config: The model and its options.
        shape: Of an input sample.
        outputs: Classes, channels or elements of an output.
        ops: The backend.
        precision: Of activations and matrix products.

    Raises:
        ConfigError: An option of the model is impossible.
    """
    try:
        layers = config.chosen(shape, outputs, **asdict(config.options))
        return Model(layers, shape, ops, compute_dtype=getattr(ml_dtypes, precision, precision))
    except (ValueError, OverflowError, MemoryError) as error:
        what = f"cannot build {config.name!r}: {error}"
        raise ConfigError(what, where="model.name", remedy="check the options") from error


def build_loss(config: LossConfig, ops: Ops) -> Loss:
    """The loss."""
    loss: Loss = config.chosen(ops, **asdict(config.options))
    return loss


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
