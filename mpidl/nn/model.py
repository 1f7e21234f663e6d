"""A model: a sequence of layers over one flat parameter buffer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpidl.backend import Array, Ops
from mpidl.errors import BackendError, ShapeError
from mpidl.nn.activations import ActivationPool
from mpidl.nn.fuse import fuse
from mpidl.nn.layer import Backward, Layer, Runtime, Shape, number_layers
from mpidl.nn.parameters import FlatParameters, ParameterSpec

# Called during backward as soon as the gradients [start, stop) of the flat buffer are final.
GradientsReady = Callable[[int, int], None]
# Takes the gradient of the output; returns that of the input, where the model computes it.
ModelBackward = Callable[[Array, GradientsReady | None], "Array | None"]


class Model:
    """A sequence of layers and their parameters.

    Args:
        layers: The layers, which are named by kind and number (conv2d1, dense1, dense2, ...).
        input_shape: Shape of an input sample.
        ops: The backend.
        dtype: Dtype of parameters and gradients, float32 or float64.
        compute_dtype: Dtype of activations and matrix products; 16-bit dtypes need a GPU.
        input_gradient: Backward also returns the gradient of the input, valid until its memory is
            used by the next forward pass.

    Attributes:
        output_shape: Shape of an output sample.
        parameters: Flat buffers of parameters and gradients.
        runtime: State of the run that the layers depend on.
        ranges: First and last trainable parameter of each layer, or None.
        takes_ids: Whether the inputs are integers.
        needs_collective: Whether a training pass communicates with the other ranks.
        capturable: Whether a CUDA graph can replay a pass.

    Raises:
        BackendError: The backend cannot compute in these dtypes.
        ConfigError: A layer object is used twice.
        ShapeError: A layer does not accept the output of the one before it.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        input_shape: Shape,
        ops: Ops,
        *,
        dtype: DTypeLike = np.float32,
        compute_dtype: DTypeLike | None = None,
        input_gradient: bool = False,
    ) -> None:
        compute = np.dtype(dtype if compute_dtype is None else compute_dtype)
        _check_dtypes(ops, np.dtype(dtype), compute)
        self.layers = list(layers)
        self.input_shape = tuple(input_shape)
        self.ops = ops
        self.input_gradient = input_gradient
        self._passes = ActivationPool(ops)
        self.runtime = Runtime(self._passes.free[0], model=weakref.ref(self))
        fuse(self.layers)
        specs, self.ranges, self.output_shape = _declare(
            self.layers, self.input_shape, input_gradient=input_gradient
        )
        self._shapes = {self.input_shape}
        self._parameter_shapes = {spec.name: spec.shape for spec in specs}
        self.parameters = FlatParameters(specs, ops, dtype, compute_dtype=compute_dtype)
        for layer in self.layers:
            layer.bind(ops, self.parameters, self.runtime)
        for number, layer in enumerate(self.walk()):
            layer.number = number
        self.takes_ids = any(layer.takes_ids for layer in self.walk())
        self.needs_collective = any(layer.needs_collective for layer in self.walk())
        self.capturable = all(layer.capturable for layer in self.walk())

    def admit(self, layers: Sequence[Layer], input_shape: Shape) -> Shape:
        """Take samples of another shape too, with the same parameters: parts of the samples.

        Args:
            layers: The same layers, made for that shape.
            input_shape: Of an input sample.

        Returns:
            Shape of an output sample.

        Raises:
            ShapeError: They would have other parameters.
        """
        layers = list(layers)
        fuse(layers)
        specs, _, output_shape = _declare(layers, tuple(input_shape))
        for spec in specs:
            own = self._parameter_shapes.get(spec.name)
            if own != spec.shape:
                raise ShapeError(
                    f"{spec.name} has the shape {own} for samples of shape {self.input_shape}, "
                    f"but {spec.shape} for {tuple(input_shape)}",
                    remedy="choose a model that is convolutional throughout",
                )
        self._shapes.add(tuple(input_shape))
        return output_shape

    def walk(self) -> Iterator[Layer]:
        """All layers, including nested ones."""
        for layer in self.layers:
            yield from layer.walk()

    def forward(
        self, x: Array, *, train: bool = False, until: str | None = None
    ) -> tuple[Array, ModelBackward]:
        """Compute the output of a batch.

        Args:
            x: The batch, (n, *input_shape), or samples of another shape that was admitted. Views,
                other floating-point dtypes, and host arrays for a GPU are copied.
            train: Keep the activations until the backward pass has finished; several passes may be
                in flight. Otherwise, and afterwards, the next forward pass may overwrite output
                and activations.
            until: Name of the layer whose output is wanted; None: the last.

        Returns:
            The output and the backward pass, which can be called once. It takes the gradient of
            the output and optionally a callback for gradients that have become final.

        Raises:
            ShapeError: The shape or the dtype of the samples does not fit the model.
        """
        x = self._usable(x)
        if tuple(x.shape[1:]) not in self._shapes:
            raise ShapeError(
                f"the model takes samples of shape {self.input_shape}, but got "
                f"{tuple(x.shape[1:])}",
                remedy="shard the data in the model's shape, or change the model",
            )
        self.parameters.refresh()
        this = self._passes.begin(self.runtime.key)
        self.runtime.activations = this.activations
        steps: list[Backward] = []
        storage = self.parameters.storage
        for layer in self.layers:
            storage.enter(layer.name)
            x, step = layer.forward(x, train=train)
            steps.append(step)
            if layer.name == until:
                break
        if not train:
            this.release()

        def backward(dy: Array, ready: GradientsReady | None = None) -> Array | None:
            this.begin_backward()
            before, self.runtime.key = self.runtime.key, this.key
            self.runtime.activations = this.activations
            try:
                # layers overwrite the gradient that they receive
                writable = getattr(dy.flags, "writeable", True)
                return self._propagate(steps, dy if writable else dy.copy(), ready)
            finally:
                self.runtime.key = before
                this.release()

        return x, backward

    def _propagate(
        self, steps: Sequence[Backward], dy: Array, ready: GradientsReady | None
    ) -> Array | None:
        """Run the backward closures of the layers in reverse order."""
        storage = self.parameters.storage
        gradient: Array | None = dy
        for index in range(len(steps) - 1, -1, -1):
            if gradient is None:
                break
            storage.enter(self.layers[index].name)
            gradient = steps[index](gradient)
            names = self.ranges[index]
            if ready is not None and names is not None:
                slots = self.parameters.slots
                ready(slots[names[0]].start, slots[names[1]].stop)
        return gradient if self.input_gradient else None

    def _usable(self, x: Any) -> Array:
        """`x` as layers need it: contiguous on the device, in the compute dtype, or int64 ids."""
        xp = self.ops.xp
        given: Array = x if isinstance(x, xp.ndarray) else self.ops.to_device(np.asarray(x))
        wanted = np.dtype(np.int64) if self.takes_ids else self.parameters.compute_dtype
        kinds = "iu" if self.takes_ids else "fiub"
        if given.dtype.kind not in kinds and given.dtype not in self.ops.half_types:
            numbers = "ids (whole numbers)" if self.takes_ids else "real numbers"
            raise ShapeError(
                f"the model takes {numbers}, but got {given.dtype}",
                where=f"layer {self.layers[0].name}",
                remedy="convert the input: tokens to int64, fields to float32",
            )
        if given.dtype == wanted and given.flags.c_contiguous:
            return given
        converted: Array = xp.ascontiguousarray(given, wanted)
        return converted


def _declare(
    layers: Sequence[Layer], shape: Shape, *, input_gradient: bool = False
) -> tuple[list[ParameterSpec], list[tuple[str, str] | None], Shape]:
    """Name the layers.

    Returns:
        Their parameters, the first and the last trainable one of each layer, and the shape of an
        output sample.
    """
    specs: list[ParameterSpec] = []
    ranges: list[tuple[str, str] | None] = []
    for layer, name in zip(layers, number_layers(layers), strict=True):
        layer.name = name
        output_shape = layer.output_shape(shape)
        own = [replace(spec, name=f"{name}.{spec.name}") for spec in layer.declare(shape)]
        trained = [spec.name for spec in own if spec.trainable]
        layer.needs_input_gradient = input_gradient or any(s.trainable for s in specs)
        ranges.append((trained[0], trained[-1]) if trained else None)
        specs += own
        shape = output_shape
    return specs, ranges, shape


def _check_dtypes(ops: Ops, dtype: np.dtype[Any], compute: np.dtype[Any]) -> None:
    if dtype not in (np.float32, np.float64):
        raise BackendError(f"no kernels for models of {dtype}", remedy="use float32 or float64")
    if compute != dtype and (dtype != np.float32 or compute not in ops.half_types):
        raise BackendError(
            f"the {ops.name} backend cannot compute a {dtype} model in {compute}",
            remedy="16-bit arithmetic needs a GPU (backend.name = 'cupy') and float32 parameters",
        )
