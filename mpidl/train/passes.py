"""Forward, loss and backward of one micro-batch.

On a GPU they are captured as one graph where the model and the strategy allow it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mpidl.backend import Array
from mpidl.nn import Forward, GradientsReady, Loss, LossResult, Model
from mpidl.nn.activations import Activations

KEPT = 8  # graphs: of a full batch, the last one of an epoch, and a few loss scales


@dataclass(frozen=True)
class _Captured:
    """A captured graph.

    Attributes:
        launch: Runs it.
        result: What every launch overwrites.
        allocations: Of the backend's workspaces when it was captured; if there are more now, its
            addresses may be stale.
        activations: The memory of its pass, which every launch overwrites.
    """

    launch: Callable[[], None]
    result: LossResult
    allocations: int
    activations: Activations


class Passes:
    """Runs the passes.

    Launching a small model's hundred kernels one by one takes longer than they run; a graph is one
    launch. The gradients of a graph become final all at once, so nothing of them can leave during
    backward.

    Args:
        model: Its gradients are written to its flat buffer.
        loss: Of its outputs.
        graphs: Capture the passes where the backend and all layers of the model can.
        through: What samples pass through, where it is not the model alone; no graphs then.
    """

    def __init__(
        self, model: Model, loss: Loss, *, graphs: bool = False, through: Forward | None = None
    ) -> None:
        self.model = model
        self.through = through or model
        self.loss = loss
        can_capture = model.ops.captures and model.capturable and not model.needs_collective
        can_capture &= self.through is model
        self.graphs = graphs and can_capture
        self._captured: dict[tuple[object, ...], _Captured] = {}

    def run(self, x: Array, targets: Array, count: int, ready: GradientsReady | None) -> LossResult:
        """Compute the gradients of one micro-batch, divided by `count`.

        Args:
            x: Inputs (n, ...); for a graph in memory that stays the same from call to call of one
                shape, like the targets.
            targets: (n, ...).
            count: Samples that the gradient is a mean over.
            ready: Called when gradients are final.

        Returns:
            The result, valid until the next run.
        """
        if not self.graphs:
            return self._eager(x, targets, count, ready)
        result = self._replay(x, targets, count)
        if ready is not None:
            ready(0, self.model.parameters.length)
        return result

    def _eager(
        self, x: Array, targets: Array, count: int, ready: GradientsReady | None
    ) -> LossResult:
        outputs, backward = self.through.forward(x, train=True)
        result = self.loss(outputs, targets, count)
        backward(result.gradient, ready)
        return result

    def _replay(self, x: Array, targets: Array, count: int) -> LossResult:
        ops = self.model.ops
        self.model.runtime.rng_key(ops)  # random numbers are the only thing in a graph that changes
        key = (x.shape, targets.shape, count, self.loss.gradient_scale)
        held = self._captured.get(key)
        if held is None or held.allocations != ops.allocations:
            held = self._capture(x, targets, count)
            if len(self._captured) >= KEPT:
                self._captured.clear()
            self._captured[key] = held
        # a pass of somebody else in this memory cannot go back any more
        held.activations.uses += 1
        held.launch()
        return held.result

    def _capture(self, x: Array, targets: Array, count: int) -> _Captured:
        results: list[LossResult] = []
        ops = self.model.ops
        launch = ops.capture(lambda: results.append(self._eager(x, targets, count, None)))
        return _Captured(launch, results[-1], ops.allocations, self.model.runtime.activations)
