"""Ready-made models, by name, each in a tiny and a real size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from mpidl.nn import Layer
from mpidl.registry import Registry

MODELS: Registry[Callable[..., Sequence[Layer]]] = Registry(
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
# what 'mpidl train' makes of the samples for a model: a field (a, b) is a gray image (h, w), or a series (t, c)
INPUTS: dict[str, Literal["image", "series", "any"]] = {
    "cnn": "image",
    "fno": "any",
    "gpt": "any",
    "lstm": "series",
    "mlp": "any",
    "resnet": "image",
    "resnet18": "image",
    "resnet50": "image",
    "unet": "image",
    "vit": "image",
}
# option size="tiny" or "real": what a laptop trains in seconds, and what papers use (also the defaults of the models)
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "cnn": {
        "tiny": {"channels": (8, 16), "hidden": (32,)},
        "real": {"channels": (32, 64), "hidden": (128,)},
    },
    "fno": {
        "tiny": {"width": 16, "modes": 6, "depth": 3},
        "real": {"width": 64, "modes": 16, "depth": 4},
    },
    "gpt": {
        "tiny": {"width": 64, "depth": 2, "heads": 4},
        "real": {"width": 768, "depth": 12, "heads": 12},
    },
    "lstm": {
        "tiny": {"units": 64, "depth": 1, "embedding": 32},
        "real": {"units": 512, "depth": 2, "embedding": 256},
    },
    "mlp": {"tiny": {"hidden": (32,)}, "real": {"hidden": (256, 256)}},
    "resnet": {"tiny": {"depth": 10, "width": 8}, "real": {"depth": 50}},
    "resnet18": {"tiny": {"width": 8}, "real": {"width": 64}},
    "resnet50": {"tiny": {"width": 8}, "real": {"width": 64}},
    "unet": {"tiny": {"channels": (8, 16), "groups": 4}, "real": {"channels": (64, 128, 256, 512)}},
    "vit": {
        "tiny": {"patch": 4, "width": 32, "depth": 2, "heads": 2},
        "real": {"patch": 16, "width": 384, "depth": 12, "heads": 6},
    },
}


def layers_of(
    name: str, input_shape: tuple[int, ...], classes: int, options: dict[str, Any]
) -> Sequence[Layer]:
    """The layers of model `name` for samples of `input_shape`; options are the model's own keyword arguments, and "size"."""
    size = options.get("size", "")
    own = {key: value for key, value in options.items() if key != "size"}
    return MODELS[name](input_shape, classes, **((SIZES[name][size] | own) if size else own))
