"""One step of training, written once: forward, loss, backward, exchange, update.

`mpidl train`, `mpidl.fleet`, the examples and the benchmarks all take their steps here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mpidl.backend import Array
from mpidl.comm.context import Context
from mpidl.errors import NumericsError
from mpidl.nn import Forward, GradientsReady, Loss, LossResult, Model
from mpidl.optim import LossScaler, Optimizer, Parameters, clip_by_global_norm
from mpidl.sync import AsynchronousStrategy, StepScalars, SynchronousStrategy
from mpidl.train.accumulation import TreeSum
from mpidl.train.events import Observers
from mpidl.train.passes import Passes
from mpidl.train.shared_state import SharedState

AnyStrategy = SynchronousStrategy | AsynchronousStrategy
MicroBatch = tuple[Array, Array]  # inputs (n, ...) and targets (n, ...), on the device


@dataclass(frozen=True)
class StepBatch:
    """This rank's part of a global batch.

    Attributes:
        micro_batches: As many as `StepOptions.micro_batches`; None for one without samples. Each
            is asked for while the device still computes the one before.
        count: Samples of this rank.
        global_count: Samples of all ranks.
    """

    micro_batches: Iterable[MicroBatch | None]
    count: int
    global_count: int

    @classmethod
    def whole(cls, inputs: Array, targets: Array, ranks: int = 1) -> StepBatch:
        """One micro-batch on each of `ranks` ranks, all of the same size."""
        return cls([(inputs, targets)], len(inputs), len(inputs) * ranks)


@dataclass(frozen=True)
class StepOptions:
    """How steps are taken.

    Attributes:
        micro_batches: Of this rank in a step, a power of two or 1.
        clip_norm: Largest norm of all gradients together; 0: no limit.
        scale_loss: Scale the loss dynamically, for float16.
        graphs: Capture the passes as a graph of the device; "auto": where no gradients leave
            during backward. Inputs and targets must then stay in the same memory.
        seed: Of random layers.
        through: What samples pass through, where it is not the model alone.
    """

    micro_batches: int = 1
    clip_norm: float = 0.0
    scale_loss: bool = False
    graphs: Literal["auto", "on", "off"] = "off"
    seed: int = 0
    through: Forward | None = None


class OptimizerStep:
    """What follows the backward pass: the exchange of gradients, and the optimizer's step.

    Args:
        strategy: How the ranks combine their work.
        optimizer: On `strategy.shard`.
        clip_norm: See `StepOptions`.
        scaler: Of the loss; None: it is not scaled.
    """

    def __init__(
        self,
        strategy: AnyStrategy,
        optimizer: Optimizer,
        *,
        clip_norm: float = 0.0,
        scaler: LossScaler | None = None,
    ) -> None:
        self.strategy = strategy
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.scaler = scaler
        strategy.optimizer = optimizer

    def run(self, own: StepScalars, lr: float) -> StepScalars:
        """Exchange and update.

        Args:
            own: Scalars of this rank.
            lr: Learning rate.

        Returns:
            Sums over the ranks, where they meet in this step; else `own`.
        """
        strategy = self.strategy
        if isinstance(strategy, AsynchronousStrategy):
            self._clip(strategy.parameters)
            strategy.apply_gradients(lr, self.optimizer.step)
            return own
        return strategy.step(own, partial(self._update, lr))

    def _update(self, lr: float) -> None:
        """The optimizer's step, unless 16-bit gradients have overflowed."""
        shard = self.strategy.shard
        if self.scaler is None or self.scaler.accept(shard):
            self._clip(shard)
            self.optimizer.step(lr)

    def _clip(self, gradients: Parameters) -> None:
        if self.clip_norm:
            clip_by_global_norm(gradients, self.strategy.parameters.ops, self.clip_norm)


class TrainingStep:
    """Takes the steps of a model with a loss, an optimizer and a strategy.

    Args:
        model: The model.
        loss: Of its outputs.
        strategy: How the ranks combine their work; `strategy.start()` has been or will be called.
        optimizer: On `strategy.shard`.
        context: The ranks.
        options: How steps are taken.
        observers: Told of passes.

    Attributes:
        scaler: Of the loss.
        shared: What layers share across ranks besides gradients.
    """

    def __init__(
        self,
        model: Model,
        loss: Loss,
        strategy: AnyStrategy,
        optimizer: Optimizer,
        context: Context,
        options: StepOptions | None = None,
        observers: Observers = (),
    ) -> None:
        options = options or StepOptions()
        self.model = model
        self.loss = loss
        self.strategy = strategy
        self.optimizer = optimizer
        self.context = context
        self.observers = observers
        self.micro_batches = options.micro_batches
        self.scaler = LossScaler(model.parameters, dynamic=options.scale_loss)
        self.shared = SharedState(model, context, options.seed)
        self._finish = OptimizerStep(
            strategy, optimizer, clip_norm=options.clip_norm, scaler=self.scaler
        )
        graphs = options.graphs == "on" or (options.graphs == "auto" and not strategy.overlaps)
        self._passes = Passes(model, loss, graphs=graphs, through=options.through)
        leaves = 1 if strategy.reduces_micro_batches else options.micro_batches
        self._tree = TreeSum(model.parameters, leaves)
        self._error: Exception | None = None  # of this rank, until the ranks meet

    def run(
        self, batches: Iterator[StepBatch], lr: float, *, step: int = 0, stop: bool = False
    ) -> StepScalars:
        """Take one step: with the other ranks together, or alone if the strategy is asynchronous.

        Args:
            batches: The next one is taken. An error in making it counts as one of the step.
            lr: Learning rate.
            step: Number of the step in the run, from 0: random layers depend on it.
            stop: Whether this rank asks for the run to stop.

        Returns:
            Sums over the ranks that have met in this step; an asynchronous rank's own scalars.

        Raises:
            MpidlError: Something went wrong on any rank; on all ranks together, but for
                asynchronous strategies.
            NumericsError: The loss is not finite.
        """
        if isinstance(self.strategy, AsynchronousStrategy):
            return self._finish.run(self._compute(batches, step), lr)
        try:
            own = self._compute(batches, step)
        except Exception as error:
            if self.model.parameters.gathers_in_passes:
                raise  # the other ranks wait in the middle of a pass, and not for our scalars
            self._error = self._error or error  # the first is the cause
            self._tree.reset()
            own = StepScalars(failed=1.0)
        own.stop = float(stop)
        sums = self._finish.run(own, lr)
        self._raise_failures(sums, own, step)
        return sums

    def synchronize(self, step: int) -> StepScalars:
        """Give all ranks the same parameters and state, after `step` steps. Collective.

        Returns:
            What has failed or asked to stop since the ranks last met.

        Raises:
            MpidlError: What has failed, on all ranks together.
        """
        self.shared.synchronize()
        sums = self.strategy.synchronize()
        self._raise_failures(sums, StepScalars(), step)
        return sums

    def _compute(self, batches: Iterator[StepBatch], step: int) -> StepScalars:
        """Leave the sum of this rank's gradients in the flat buffer; returns its scalars."""
        batch = next(batches)
        for observer in self.observers:
            observer.pass_started()
        own = self._run_passes(batch, step)
        for observer in self.observers:
            observer.pass_finished(own)
        if self.strategy.averages_locally and not math.isfinite(own.loss):
            raise self._not_finite(step)  # no sum over the ranks would show it to all of them
        return own

    def _run_passes(self, batch: StepBatch, step: int) -> StepScalars:
        parameters = self.model.parameters
        divisor = batch.count if self.strategy.averages_locally else batch.global_count
        self.loss.gradient_scale = self.scaler.scale
        leaves: list[StepScalars] = []
        staged = iter(batch.micro_batches)
        current = next(staged)
        for index in range(self.micro_batches):
            self.shared.begin(step, index, self.micro_batches)
            last = self._tree.at_last  # only then are gradients final
            result = self._run_pass(current, divisor, self._on_final if last else None)
            if not last:
                self._unscale(0, parameters.length)
            count = len(current[1]) if current is not None else 0
            # before the result is read, which waits for the device
            current = next(staged) if index + 1 < self.micro_batches else None
            loss, correct = (result.total, float(result.correct)) if result else (0.0, 0.0)
            leaves.append(StepScalars(loss, correct, count=count))
            if not last:
                self._tree.add_part(0, parameters.length)
            self._tree.advance()
        return StepScalars.tree_sum(leaves, parameters.dtype)

    def _run_pass(
        self, micro_batch: MicroBatch | None, divisor: int, ready: GradientsReady | None
    ) -> LossResult | None:
        """Gradients of one micro-batch; zeros where it has no samples."""
        if micro_batch is not None:
            return self._passes.run(*micro_batch, divisor, ready)
        self.model.parameters.gradients[...] = 0
        if ready is not None:
            ready(0, self.model.parameters.length)
        return None

    def _on_final(self, start: int, stop: int) -> None:
        """Gradients [start, stop) of the last micro-batch are computed."""
        self._unscale(start, stop)
        if self.micro_batches > 1:
            self._tree.add_part(start, stop)
        self.strategy.on_gradients_ready(start, stop)

    def _unscale(self, start: int, stop: int) -> None:
        if self.scaler.scale != 1:
            self.scaler.unscale(*self.model.parameters.storage.gradient_range(start, stop))

    def _raise_failures(self, sums: StepScalars, own: StepScalars, step: int) -> None:
        """Where the ranks have met: raise on all of them what went wrong on any."""
        if sums.failed:
            self.context.raise_on_all(self._error, f"training step {step + 1}")
        if not math.isfinite(sums.loss) and not self.strategy.averages_locally:
            broken = None if math.isfinite(own.loss) else self._not_finite(step)
            self.context.raise_on_all(broken, "training")
            raise self._not_finite(step, agreed=True)  # finite losses whose sum is not

    def _not_finite(self, step: int, *, agreed: bool = False) -> NumericsError:
        """Names what can be known: the first parameter that is not finite."""
        parameters = self.model.parameters
        name = parameters.first_nonfinite(parameters.values)
        what = f"the loss is not finite at step {step + 1}"
        what += f"; parameter {name} is not finite: the training diverged" if name else ""
        return NumericsError(
            what,
            remedy="lower optim.lr or add optim.warmup_epochs; check the inputs; the last "
            "checkpoint is intact",
            agreed=agreed,
        )
