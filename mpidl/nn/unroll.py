"""A model that goes on from its own outputs: unrolled over several steps in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from mpidl.backend import Array
from mpidl.errors import ShapeError
from mpidl.nn.losses import Loss, LossResult
from mpidl.nn.model import GradientsReady, Model, ModelBackward

Shape = tuple[int, ...]


class Forward(Protocol):
    """What a step or an evaluation passes samples through: a model, or a model unrolled.

    Attributes:
        output_shape: Shape of an output sample.
    """

    output_shape: Shape

    def forward(self, x: Array, *, train: bool = False) -> tuple[Array, ModelBackward]:
        """See `Model.forward`."""


class Unrolled:
    """A model of the next frame, whose outputs become its inputs again (n, steps, *frame).

    Backpropagation goes through all steps: each pass gives the gradient of its input to the
    outputs that the input was made of. Layers write parameter gradients, so those of the passes
    are added up in a buffer of the size of the model; they are final in the last pass. Random masks
    are the same in all steps.

    Args:
        model: From the last frames, (n, ..., history * channels) with the newest at the end, to
            the next, (n, ..., channels). To train it over several steps it must be a model with
            `input_gradient`.
        steps: Frames that follow one another.
        history: Frames of an input.

    Attributes:
        output_shape: (steps, ..., channels).
    """

    def __init__(self, model: Model, steps: int, history: int = 1) -> None:
        self.model = model
        self.steps = steps
        self.history = history
        self.output_shape = (steps, *model.output_shape)
        self._space = model.ops.workspace()
        self._sum: Array | None = None  # parameter gradients of the passes so far

    def forward(self, x: Array, *, train: bool = False) -> tuple[Array, ModelBackward]:
        """Compute the frames that follow.

        Args:
            x: Inputs of the first step, (n, *model.input_shape).
            train: Keep what the backward pass needs.

        Returns:
            Outputs (n, *output_shape), valid until the next call, and the backward pass. That
            returns nothing but the gradients of parameters.
        """
        passes: list[ModelBackward] = []
        shape = (len(x), *self.output_shape)
        outputs = self._space.get("outputs", shape, self.model.parameters.compute_dtype)
        for step in range(self.steps):
            frame, backward = self.model.forward(x, train=train)
            passes.append(backward)
            outputs[:, step] = frame
            if step + 1 < self.steps:
                # layers keep their inputs until the backward pass
                x = self._shift(x, frame, step if train else step % 2)

        def backward_all(dy: Array, ready: GradientsReady | None = None) -> None:
            self._propagate(passes, dy, ready)

        return outputs, backward_all

    def _shift(self, x: Array, frame: Array, number: int) -> Array:
        """The input of the next step: without the oldest frame, with `frame` as the newest."""
        following = self._space.get(f"x{number}", x.shape, frame.dtype)
        channels = frame.shape[-1]
        following[..., :-channels] = x[..., channels:]
        following[..., -channels:] = frame
        return following

    def _propagate(
        self, passes: Sequence[ModelBackward], dy: Array, ready: GradientsReady | None
    ) -> None:
        if self.steps == 1:
            passes[0](dy.reshape(len(dy), *self.model.output_shape), ready)
            return
        gradient = self._space.get("gradient", dy.shape, dy.dtype)
        gradient[...] = dy
        own = self._space.get("own", (len(dy), *self.model.output_shape), dy.dtype)
        for step in reversed(range(self.steps)):
            own[...] = gradient[:, step]
            dx = passes[step](own, self._collector(step, ready))
            if step:
                self._pass_on(dx, gradient, step)

    def _pass_on(self, dx: Array | None, gradient: Array, step: int) -> None:
        """Add the gradient of the input of a step to those of the outputs that it was made of."""
        if dx is None:
            raise ShapeError(
                "the model does not compute the gradient of its input",
                where="model",
                remedy="build it with input_gradient=True; models of ids cannot be unrolled",
            )
        channels = self.model.output_shape[-1]
        for index in range(self.history):
            source = step + index - self.history
            if source >= 0:
                gradient[:, source] += dx[..., index * channels : (index + 1) * channels]

    def _collector(self, step: int, ready: GradientsReady | None) -> GradientsReady:
        """Adds up what the pass of a step has written, as soon as each layer has."""
        parameters = self.model.parameters
        if self._sum is None:
            self._sum = parameters.ops.xp.zeros(parameters.length, parameters.dtype)
        total = self._sum

        def collect(start: int, stop: int) -> None:
            low = start
            for part in parameters.storage.gradient_range(start, stop):
                kept = total[low : low + part.size]
                low += part.size
                if step == 0:
                    part += kept
                elif step == self.steps - 1:
                    kept[...] = part
                else:
                    kept += part
            if step == 0 and ready is not None:
                ready(start, stop)

        return collect


class FrameLoss(Loss):
    """The mean of the losses of the frames of a sample, (n, frames, ...).

    Args:
        frame: The loss of one frame.
    """

    targets = "values"

    def __init__(self, frame: Loss) -> None:
        super().__init__(frame.ops)
        self.frame = frame

    def check(self, output_shape: Shape, target_shape: Shape) -> None:
        if output_shape[:1] != target_shape[:1]:
            raise ShapeError(
                f"{output_shape[0]} frames are compared with {target_shape[0]}",
                where="loss",
                remedy="give as many target frames as the model is unrolled for",
            )
        self.frame.check(output_shape[1:], target_shape[1:])

    def check_outputs(self, output_shape: Shape) -> None:
        self.frame.check_outputs(output_shape[1:])

    def target_dtype(self, dtype: DTypeLike) -> np.dtype[Any]:
        return self.frame.target_dtype(dtype)

    def compute(self, outputs: Array, targets: Array, scale: float) -> LossResult:
        frames = outputs.shape[1]
        rows = outputs.reshape(-1, *outputs.shape[2:])
        found = self.frame.compute(
            rows, targets.reshape(len(rows), *targets.shape[2:]), scale / frames
        )
        return LossResult(
            found.gradient.reshape(outputs.shape),
            len(outputs),
            found.losses,
            found.elements_per_sample * frames,
        )
