"""Forward, loss and backward of one micro-batch; on a GPU captured as one graph where the model and the strategy allow it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mpidl.backend import Array
from mpidl.nn import CrossEntropy, GradientsReady, LossResult, Model
from mpidl.nn.activations import Activations

KEPT = 8  # graphs: of a full batch, the last one of an epoch, and a few loss scales


@dataclass(frozen=True)
class _Captured:
    """allocations: of the backend's workspaces when it was captured; if there are more, its addresses may be old. activations:
    the memory of its pass, which every launch overwrites."""

    launch: Callable[[], None]
    result: LossResult
    allocations: int
    activations: Activations


class Passes:
    """Runs the passes. graphs: capture them where the backend and all layers of the model can.

    Launching a small model's hundred kernels one by one takes longer than they run; a graph is one launch. The gradients of a
    graph become final all at once, so nothing of them can leave during backward.
    """

    def __init__(self, model: Model, loss: CrossEntropy, *, graphs: bool = False) -> None:
        self.model, self.loss = model, loss
        self.graphs = (
            graphs and model.ops.captures and model.capturable and not model.needs_collective
        )
        self._captured: dict[tuple[object, ...], _Captured] = {}

    def run(self, x: Array, labels: Array, count: int, ready: GradientsReady | None) -> LossResult:
        """Gradients into the flat buffer, divided by `count`; the result is valid until the next run.

        x and labels: in memory that stays the same from call to call of one shape, for a graph.
        """
        if not self.graphs:
            return self._eager(x, labels, count, ready)
        result = self._replay(x, labels, count)
        if ready is not None:
            ready(0, self.model.parameters.length)
        return result

    def _eager(
        self, x: Array, labels: Array, count: int, ready: GradientsReady | None
    ) -> LossResult:
        logits, backward = self.model.forward(x, train=True)
        result = self.loss(logits, labels, count)
        backward(result.gradient, ready)
        return result

    def _replay(self, x: Array, labels: Array, count: int) -> LossResult:
        ops = self.model.ops
        self.model.runtime.rng_key(ops)  # random numbers are the only thing in a graph that changes
        key = (x.shape, labels.shape, count, self.loss.gradient_scale)
        held = self._captured.get(key)
        if held is None or held.allocations != ops.allocations:
            held = self._capture(x, labels, count)
            if len(self._captured) >= KEPT:
                self._captured.clear()
            self._captured[key] = held
        held.activations.uses += 1  # a pass of somebody else in this memory cannot go back any more
        held.launch()
        return held.result

    def _capture(self, x: Array, labels: Array, count: int) -> _Captured:
        results: list[LossResult] = []
        launch = self.model.ops.capture(lambda: results.append(self._eager(x, labels, count, None)))
        return _Captured(
            launch, results[-1], self.model.ops.allocations, self.model.runtime.activations
        )
