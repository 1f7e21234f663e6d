"""What programs call the tensors of a model, told apart by the names in a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from mpidl.nn import Model
from mpidl.registry import Registry

Tensor = NDArray[Any]
Tensors = Mapping[str, Tensor]

# In the order in which they are tried: the last takes every file
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
    """The tensor itself."""
    return tensor


def transpose(tensor: Tensor) -> Tensor:
    """Weights of a dense layer: (out, in) to (in, out)."""
    return tensor.T


def channels_last(tensor: Tensor) -> Tensor:
    """Weights of a convolution: (out, in, h, w) to (h, w, in, out)."""
    return tensor.transpose(2, 3, 1, 0)


class Source(NamedTuple):
    """Where a parameter comes from: the name of a tensor, and how it becomes the parameter."""

    name: str
    convert: Callable[[Tensor], Tensor] = keep


class Format(ABC):
    """The names and layouts of one program."""

    @staticmethod
    @abstractmethod
    def matches(tensors: Tensors) -> bool:
        """Whether the names in a file are of this format."""

    @staticmethod
    @abstractmethod
    def sources(model: Model, tensors: Tensors) -> dict[str, Source]:
        """Where each parameter of the model is found in a file with these tensors."""

    @staticmethod
    def is_ignored(name: str) -> bool:
        """Whether a tensor is no weight, so that it need not have a place in the model."""
        return False


class Native(Format):
    """Tensors under the names of the parameters, as `save_weights` writes them."""

    @staticmethod
    def matches(tensors: Tensors) -> bool:
        return True

    @staticmethod
    def sources(model: Model, tensors: Tensors) -> dict[str, Source]:
        names = [*model.parameters.slots, *model.parameters.state_slots]
        return {name: Source(name) for name in names}


def detect_format(tensors: Tensors) -> type[Format]:
    """The first format that the names in a file match."""
    return next(FORMATS[name] for name in FORMATS if FORMATS[name].matches(tensors))


def norm_sources(ours: str, theirs: str, *, running: bool) -> dict[str, Source]:
    """Of a normalization layer; running: with running statistics."""
    parts = ["weight", "bias", *(["running_mean", "running_var"] if running else [])]
    return {f"{ours}.{part}": Source(f"{theirs}.{part}") for part in parts}
