"""Smaller models for inference: how they are stored, and how they compute.

A quantized model is a checkpoint whose metadata say how its parameters are stored
(`mpidl.train.checkpoint.Quantized`): "int8" and "scales" hold the matrices `names` one after
another, "parameters" the other parameters in the order of the flat buffer, both without gaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mpidl.backend.contract.int8 import MOST_INPUTS, pack_int8, quantize_columns
from mpidl.errors import CheckpointError
from mpidl.inference.fold import join
from mpidl.inference.int8 import use_int8
from mpidl.nn import Conv1D, Conv2D, Conv3D, Dense, Layer, Model, SelfAttention
from mpidl.train import checkpoint as ckpt

FEWEST_INPUTS = 9  # of a matrix that is worth int8: those of a 3x3 convolution of gray images
STORAGE: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
MATRICES: dict[type[Layer], tuple[str, ...]] = {
    Dense: ("weight",),
    SelfAttention: ("qkv.weight", "out.weight"),
    Conv1D: ("weight",),
    Conv2D: ("weight",),
    Conv3D: ("weight",),
}


def matrices(model: Model) -> Iterator[tuple[Layer, str]]:
    """The parameters that can be int8: a layer, and the name of its parameter."""
    for layer in model.walk():
        if getattr(layer, "groups", 1) > 1:
            continue
        for name in MATRICES.get(type(layer), ()):
            size = layer.value(name).size
            inputs = size // max(1, layer.value(name).shape[-1])
            if FEWEST_INPUTS <= inputs <= MOST_INPUTS:
                yield layer, f"{layer.name}.{name}"


def prune(model: Model, share: float) -> None:
    """Set the elements of smallest magnitude in each matrix to 0.

    Args:
        model: Its matrices are changed.
        share: Of their elements, from 0 to below 1.
    """
    for _, name in matrices(model):
        weight = model.parameters.value(name)
        flat = np.abs(np.asarray(model.ops.to_host(weight)).reshape(-1))
        count = int(share * flat.size)
        if count:
            kept = np.ones(flat.size, flat.dtype)
            kept[np.argpartition(flat, count - 1)[:count]] = 0
            weight *= model.ops.to_device(kept.reshape(weight.shape))


def store(model: Model, about: ckpt.Quantized) -> ckpt.Buffers:
    """The datasets of a quantized model.

    Args:
        model: Already folded and pruned.
        about: How to store it; `names` say what becomes int8.

    Raises:
        CheckpointError: A parameter is not finite, or too large for the storage.
    """
    dtype = STORAGE[about.storage]
    rest, numbers, scales = [np.zeros(0, dtype)], [], []
    for name in model.parameters.slots:
        host = np.asarray(model.ops.to_host(model.parameters.value(name)), np.float32)
        kind = np.dtype(np.float32) if name in about.names else dtype
        with np.errstate(over="ignore"):
            rounded = host.astype(kind)
        if not np.isfinite(rounded.astype(np.float32)).all():
            raise CheckpointError(
                f"{name} is not finite as {kind}",
                where="--storage",
                remedy="choose float32 or bfloat16, or another checkpoint",
            )
        if name in about.names:
            whole, steps = quantize_columns(host.reshape(-1, host.shape[-1]))
            numbers.append(whole.reshape(-1))
            scales.append(steps)
        else:
            rest.append(rounded.reshape(-1))
    found: ckpt.Buffers = {"parameters": np.concatenate(rest)}
    if about.storage == "bfloat16":
        found["parameters"] = found["parameters"].view(np.uint16)  # HDF5 has no such number
    if numbers:
        found |= {"int8": np.concatenate(numbers), "scales": np.concatenate(scales)}
    if model.parameters.state.size:
        found["state"] = np.array(model.ops.to_host(model.parameters.state))
    return found


def load(saved: ckpt.Checkpoint, model: Model) -> None:
    """Give a model the parameters of a checkpoint, quantized or not.

    Args:
        saved: The checkpoint.
        model: Made from its configuration.

    Raises:
        CheckpointError: They do not fit each other.
    """
    about, parameters = saved.meta.quantized, model.parameters
    _check(saved, model)
    if about is None:
        parameters.values[...] = model.ops.to_device(saved.buffers["parameters"])
    else:
        _fill(saved.buffers, about, model)
    if parameters.state.size:
        parameters.state[...] = model.ops.to_device(saved.buffers["state"])
    if about is not None:
        join(model, norms=about.folded)


def _check(saved: ckpt.Checkpoint, model: Model) -> None:
    """Refuse buffers of other sizes or dtypes than the model has."""
    about, parameters, buffers = saved.meta.quantized, model.parameters, saved.buffers
    wanted: dict[str, tuple[int, np.dtype[Any]]] = {}
    if about is None:
        wanted["parameters"] = parameters.values.size, parameters.values.dtype
    else:
        possible = {name for _, name in matrices(model)}
        shapes = {name: slot.spec.shape for name, slot in parameters.slots.items()}
        named = tuple(name for name in shapes if name in about.names)
        if named != about.names or not possible.issuperset(named):
            raise _misfit(saved)
        rest = sum(math.prod(shape) for name, shape in shapes.items() if name not in named)
        kind = np.dtype(np.uint16) if about.storage == "bfloat16" else STORAGE[about.storage]
        wanted["parameters"] = rest, kind
        if named:
            wanted["int8"] = sum(math.prod(shapes[name]) for name in named), np.dtype(np.int8)
            wanted["scales"] = sum(shapes[name][-1] for name in named), np.dtype(np.float32)
    if parameters.state.size:
        wanted["state"] = parameters.state.size, parameters.state.dtype
    for name, (size, dtype) in wanted.items():
        held = buffers.get(name)
        if held is None or held.shape != (size,) or held.dtype != dtype:
            raise _misfit(saved)


def _misfit(saved: ckpt.Checkpoint) -> CheckpointError:
    return CheckpointError(
        "does not fit its own model",
        where=str(saved.path),
        remedy="use the mpidl that wrote it",
    )


def _taker(buffers: ckpt.Buffers, name: str) -> Callable[[int], NDArray[Any]]:
    """Takes the next elements of a buffer."""
    place = 0

    def take(count: int) -> NDArray[Any]:
        nonlocal place
        place += count
        return buffers[name][place - count : place]

    return take


def _fill(buffers: ckpt.Buffers, about: ckpt.Quantized, model: Model) -> None:
    """Set all parameters in float32; where products are int8, the layers compute by those."""
    rest, numbers, scales = (_taker(buffers, name) for name in ("parameters", "int8", "scales"))
    owners = {name: layer for layer, name in matrices(model)}
    fast = about.mode == "dynamic" and model.ops.name == "numpy"
    for name, slot in model.parameters.slots.items():
        shape = slot.spec.shape
        value = model.parameters.value(name)
        if name not in about.names:
            held = rest(math.prod(shape))
            kind = STORAGE[about.storage] if about.storage == "bfloat16" else held.dtype
            value[...] = model.ops.to_device(held.view(kind).astype(np.float32).reshape(shape))
            continue
        whole, steps = numbers(math.prod(shape)).reshape(-1, shape[-1]), scales(shape[-1])
        value[...] = model.ops.to_device((whole * steps).astype(np.float32).reshape(shape))
        if fast:
            layer = owners[name]
            view = layer.value(name.removeprefix(f"{layer.name}."))
            use_int8(layer, view, pack_int8(whole, steps, _runs(layer)))


def _runs(layer: Layer) -> int:
    """See `ConvGeometry.runs`."""
    if not isinstance(layer, Conv1D | Conv2D | Conv3D):
        return 1
    lines = layer.kernel_size if layer.dilation[-1] > 1 else layer.kernel_size[:-1]
    return math.prod(lines)
