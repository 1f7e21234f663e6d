"""Ready-made models, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mpidl.errors import ConfigError
from mpidl.models.cnn import cnn
from mpidl.models.mlp import mlp
from mpidl.nn import Layer

MODELS: dict[str, Callable[..., Sequence[Layer]]] = {"cnn": cnn, "mlp": mlp}


def layers_of(name: str, input_shape: tuple[int, ...], classes: int, options: dict[str, Any]) -> Sequence[Layer]:
    """The layers of model `name` for samples of `input_shape`; options are the model's own keyword arguments."""
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}", where="model.name", remedy=f"choose one of {sorted(MODELS)}")
    return MODELS[name](input_shape, classes, **options)
