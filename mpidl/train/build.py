"""Puts a model together from a configuration, or from what a checkpoint says of it."""

from __future__ import annotations

import inspect

from mpidl.backend import Ops
from mpidl.errors import ConfigError
from mpidl.models import MODELS, layers_of
from mpidl.nn import Model
from mpidl.train.config import ModelConfig
from mpidl.train.inputs import InputSpec


def build_model(config: ModelConfig, spec: InputSpec, ops: Ops) -> Model:
    """The model with zero parameters. Raises ConfigError for an unknown model or option."""
    if config.name in MODELS:
        known = [name for name, p in inspect.signature(MODELS[config.name]).parameters.items() if p.kind is p.KEYWORD_ONLY]
        unknown = sorted(set(config.options) - set(known))
        if unknown:
            raise ConfigError(
                f"model {config.name!r} has no option {unknown[0]!r}",
                where="model.options",
                remedy=f"it knows {', '.join(known)}",
            )
    try:
        layers = layers_of(config.name, spec.shape, spec.classes, config.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cannot build {config.name!r}: {error}", where="model.options", remedy="check the values") from error
    return Model(layers, spec.shape, ops)
