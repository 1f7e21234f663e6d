"""Formats of weights: the names and layouts that programs use, detected by the names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from mpidl.nn import Model
from mpidl.registry import Registry

Tensor = NDArray[Any]
Tensors = Mapping[str, Tensor]

# In the order of detection: the last matches every file
FORMATS: Registry[type[Format]] = Registry(
    "format of weights",
    "model.weights",
    {
        "torchvision": "mpidl.models.weights.torchvision:TorchvisionResNet",
        "gpt2": "mpidl.models.weights.gpt2:GPT2",
        "mpidl": "mpidl.models.weights.formats:Native",
    },
)


def keep(tensor: Tensor) -> Tensor:
    """Return the tensor unchanged."""
    return tensor


def transpose(tensor: Tensor) -> Tensor:
    """Transpose the weight of a dense layer, (out, in) to (in, out)."""
    return tensor.T


def channels_last(tensor: Tensor) -> Tensor:
    """Transpose the weight of a convolution, (out, in, h, w) to (h, w, in, out)."""
    return tensor.transpose(2, 3, 1, 0)


class Source(NamedTuple):
    """Source of a parameter: the name of a tensor, and its conversion."""

    name: str
    convert: Callable[[Tensor], Tensor] = keep


class Format(ABC):
    """Base of formats."""

    @staticmethod
    @abstractmethod
    def matches(tensors: Tensors) -> bool:
        """Whether a file with these tensors has this format."""

    @staticmethod
    @abstractmethod
    def sources(model: Model, tensors: Tensors) -> dict[str, Source]:
        """Source of each parameter of the model in a file with these tensors."""

    @staticmethod
    def is_ignored(name: str) -> bool:
        """Whether the tensor `name` is not a weight and can be left out."""
        return False


class Native(Format):
    """The format of `save_weights`: tensors have the names of the parameters."""

    @staticmethod
    def matches(tensors: Tensors) -> bool:
        return True

    @staticmethod
    def sources(model: Model, tensors: Tensors) -> dict[str, Source]:
        names = [*model.parameters.slots, *model.parameters.state_slots]
        return {name: Source(name) for name in names}


def detect_format(tensors: Tensors) -> type[Format]:
    """Detect the format of a file with these tensors."""
    return next(FORMATS[name] for name in FORMATS if FORMATS[name].matches(tensors))


def norm_sources(ours: str, theirs: str, *, running: bool) -> dict[str, Source]:
    """Sources of a normalization layer.

    Args:
        ours: Name of the layer in the model.
        theirs: Its name in the file.
        running: Whether it has running statistics.
    """
    parts = ["weight", "bias", *(["running_mean", "running_var"] if running else [])]
    return {f"{ours}.{part}": Source(f"{theirs}.{part}") for part in parts}
