"""Puts model, optimizer and strategy together from a configuration."""

from __future__ import annotations

import ml_dtypes
from msgspec.structs import asdict

from mpidl.backend import Ops
from mpidl.comm.context import Context
from mpidl.config import ModelConfig, OptimConfig, SyncConfig
from mpidl.errors import ConfigError
from mpidl.nn import FlatParameters, Model
from mpidl.optim import Optimizer, Parameters
from mpidl.sync import RunInfo, Strategy
from mpidl.train.inputs import InputSpec


def build_classifier(
    config: ModelConfig, spec: InputSpec, ops: Ops, precision: str = "float32"
) -> Model:
    """The model for inputs of `spec`, with zero parameters.

    Raises:
        ConfigError: It is no classifier, or an option of the model cannot be.
    """
    model = build_model(config, spec.shape, spec.classes, ops, precision)
    if model.output_shape != (spec.classes,):
        raise ConfigError(
            f"{config.name!r} gives numbers of shape {model.output_shape} for a sample, but "
            "'mpidl train' trains classifiers, which give one for each of the "
            f"{spec.classes} classes",
            where="model",
            remedy="train texts and fields through the API (docs/models.md), or choose another "
            "model or other options",
        )
    return model


def build_model(
    config: ModelConfig, shape: tuple[int, ...], classes: int, ops: Ops, precision: str = "float32"
) -> Model:
    """The model with zero parameters that computes in `precision`.

    Raises:
        ConfigError: An option of the model cannot be.
    """
    try:
        layers = config.chosen(shape, classes, **asdict(config.options))
        return Model(layers, shape, ops, compute_dtype=getattr(ml_dtypes, precision, precision))
    except (ValueError, OverflowError, MemoryError) as error:
        what = f"cannot build {config.name!r}: {error}"
        raise ConfigError(what, where="model.name", remedy="check the options") from error


def build_optimizer(config: OptimConfig, parameters: Parameters, ops: Ops) -> Optimizer:
    """The optimizer with fresh state."""
    optimizer: Optimizer = config.chosen(parameters, ops, **asdict(config.options))
    return optimizer


def build_strategy(
    config: SyncConfig, parameters: FlatParameters, context: Context, run: RunInfo
) -> Strategy:
    """The strategy. Collective."""
    strategy: Strategy = config.chosen(parameters, context, config.options, run)
    return strategy
