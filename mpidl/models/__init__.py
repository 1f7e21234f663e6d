"""Ready-made models and their registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import asdict

from mpidl.errors import ConfigError, nearest
from mpidl.models.base import ModelFunction, Samples
from mpidl.nn import Layer
from mpidl.options import Place
from mpidl.registry import Registry

MODELS: Registry[ModelFunction] = Registry(
    "model",
    "model.name",
    {
        "cnn": "mpidl.models.cnn:cnn",
        "fno": "mpidl.models.fno:fno",
        "gpt": "mpidl.models.transformer:gpt",
        "lstm": "mpidl.models.recurrent:lstm",
        "mlp": "mpidl.models.mlp:mlp",
        "resnet": "mpidl.models.resnet:resnet",
        "resnet18": "mpidl.models.resnet:resnet18",
        "resnet50": "mpidl.models.resnet:resnet50",
        "unet": "mpidl.models.unet:unet",
        "vit": "mpidl.models.transformer:vit",
    },
)

__all__ = ["MODELS", "ModelFunction", "Samples", "build_layers"]


def build_layers(
    name: str, input_shape: tuple[int, ...], outputs: int, options: Mapping[str, Any]
) -> list[Layer]:
    """Build the layers of a model.

    Args:
        name: A key of MODELS.
        input_shape: Shape of an input sample.
        outputs: Number of classes, or of channels of the output.
        options: Options of the model, and "size" for a preset.

    Raises:
        ConfigError: The model, the preset or an option is unknown, or an option is out of range.
        ShapeError: The model does not accept such samples.
    """
    MODELS.check(name)
    given = dict(options)
    size = given.pop("size", "")
    sizes = MODELS[name].sizes
    if size and size not in sizes:
        what = f"model.size is {size!r}: there is no such size of {name!r}"
        raise ConfigError(what, remedy=nearest(str(size), sizes))
    tree = {**sizes[size], **given} if size else given
    return MODELS[name](
        input_shape, outputs, **asdict(MODELS.options(name).read(tree, Place(("model",))))
    )
