"""Runs a training: epochs of steps, evaluation, checkpoints; all ranks stop together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from mpidl.comm.context import Context
from mpidl.config import Config
from mpidl.models.weights import load_weights
from mpidl.optim import RunState
from mpidl.security.channel import check_open
from mpidl.security.section import shared_security
from mpidl.sync import AsynchronousStrategy, StepScalars, SynchronousStrategy
from mpidl.train.assemble import assemble
from mpidl.train.audited import security_observers
from mpidl.train.evaluate import EpochAverage, evaluate, step_metrics
from mpidl.train.events import (
    EvaluationRecord,
    Observer,
    Result,
    RunStart,
    StepRecord,
    Totals,
)
from mpidl.train.observers import CurvesObserver, MetricsObserver, ProgressObserver
from mpidl.train.saving import Position, Saver
from mpidl.train.signals import StopRequest

EVALUATION_BATCH = 256


def usual_observers(
    config: Config, context: Context, say: Callable[[str], None], *, quiet: bool = False
) -> list[Observer]:
    """Signals on every rank; metrics, curves and, unless quiet, progress on rank 0."""
    found: list[Observer] = [StopRequest()]
    if context.is_root:
        output = Path(config.train.output)
        batch = config.train.global_batch
        title = f"{config.model.name}, {context.size} rank(s), global batch {batch}"
        found += [
            MetricsObserver(output, config.train.log_every),
            CurvesObserver(output, title, say),
            *([] if quiet else [ProgressObserver()]),
        ]
    return found


class Trainer:
    """Trains one model as a configuration says. All ranks make one, and call `run`, together.

    Args:
        config: Of the run.
        context: The ranks.
        say: Told what a user should know.
        observers: Told what happens; None: `usual_observers`.

    Attributes:
        parts: Of the run.
        at: How far it has come.
    """

    def __init__(
        self,
        config: Config,
        context: Context,
        *,
        say: Callable[[str], None] = lambda text: None,
        observers: list[Observer] | None = None,
    ) -> None:
        check_open(context, config.security.channel)
        site = shared_security(context)
        config = replace(config, security=config.security.within(site))
        self.config = config
        self.context = context
        self.output = Path(config.train.output)
        usual = usual_observers(config, context, say) if observers is None else observers
        self.observers = [*usual, *security_observers(config, context)]
        with self._closing_if_failed():
            self.parts = assemble(config, context, self.observers, say)
        self.at = Position()
        self._average = EpochAverage(self.parts.task)
        self.saver = Saver(config, context, self.parts, self._average, say)
        self._started = time.monotonic()

    @property
    def _steps(self) -> int:
        """Steps of an epoch."""
        return self.parts.steps

    @property
    def _total(self) -> int:
        """Steps of the run."""
        train = self.config.train
        total = train.epochs * self._steps
        return min(total, train.max_steps or total)

    # --- start and end ---
    def prepare(
        self,
        *,
        resume: bool = False,
        auto_resume: bool = False,
        resume_from: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        """Start from fresh parameters or from a checkpoint. Collective.

        Args:
            resume: Resume from the newest intact checkpoint in the output folder.
            auto_resume: Resume if the output folder has a checkpoint.
            resume_from: Resume from this file.
            overwrite: Delete an earlier run in the output folder.
        """
        strategy, optimizer = self.parts.strategy, self.parts.step.optimizer
        state: RunState | None = None
        with self._closing_if_failed():
            if resume or resume_from is not None or (auto_resume and self.saver.exists()):
                self.at, state = self.saver.restore(resume_from)
            else:
                self.saver.prepare_folder(overwrite)
                strategy.initialize(self.config.train.seed)
                self._load_weights()
        optimizer.count = self.at.step
        strategy.start()
        if state is not None:
            self.saver.load_state(state)

    def _load_weights(self) -> None:
        """Fill the model from a file, if there is one to start from."""
        weights = self.config.model.weights
        if weights:
            with self.context.fail_together("loading weights"), self.parts.gate.file(Path(weights)):
                load_weights(self.parts.model, weights)

    @contextmanager
    def _closing_if_failed(self) -> Iterator[None]:
        """Tell observers of an error before the loop, which tells them of later ones."""
        try:
            yield
        except BaseException:
            for observer in self.observers:
                observer.close()
            raise

    def close(self) -> None:
        """Close the data sets. Collective: all ranks close files that are open through mpio."""
        for reader in (self.parts.reader, self.parts.test):
            if reader is not None:
                reader.close()

    # --- the loop ---
    def run(self) -> Result:
        """Train to the end, or until a signal asks to stop. Collective.

        Returns:
            The same on every rank.
        """
        sampler, first = self.parts.sampler, self.at.step
        start = RunStart(
            first,
            self.context.size,
            sampler.seen(self._total),
            sampler.seen(first),
            self.parts.readers,
            self.saver.saved,
        )
        try:
            for observer in self.observers:
                observer.run_started(start)
            # not before: observers import packages and open files
            self._started = time.monotonic()
            stopped = self._run_epochs()
            result = self._result(sampler.seen(self.at.step) - sampler.seen(first), stopped)
            for observer in self.observers:
                observer.run_finished(result)
        finally:
            self.parts.feed.loader.close()
            for observer in self.observers:
                observer.close()
        return result

    def _run_epochs(self) -> bool:
        """Train, evaluate and save to the end; whether the ranks have agreed to stop before."""
        if self.at.step and self._is_due():  # a signal came in the last step before it
            state = self._state_of_replicas()
            self._evaluate()
            self._save(state)
        stopped = False
        while self.at.step < self._total and not stopped:
            if isinstance(self.parts.strategy, AsynchronousStrategy):
                stopped = self._run_asynchronous_epoch(self.parts.strategy)
            else:
                stopped = self._run_epoch()
            state = self._state_of_replicas()
            stopped = bool(self._synchronize().stop) or stopped
            if self._is_due() and not stopped:
                self._evaluate()
            if not self.saver.is_current(self.at):
                self._save(state)
        return stopped

    def _run_epoch(self) -> bool:
        """The steps of one epoch from here on; whether all ranks have agreed to stop."""
        parts, every = self.parts, self.config.checkpoint.every_steps
        epoch, first = divmod(self.at.step, self._steps)
        self._notify_epoch_started()
        batches = parts.feed.epoch(epoch, first)
        stopped = False
        for index in range(first, min(self._steps, first + self._total - self.at.step)):
            step = self.at.step
            lr = parts.rate.at(step)
            sums = parts.step.run(batches, lr, step=step, stop=self._stop_requested)
            self.at.step += 1
            self._report(self.at.step, sums, lr, parts.sampler.count(index))
            stopped = bool(sums.stop)
            if stopped:
                for observer in self.observers:
                    observer.stopping(self.at.step)
                break
            if every and self.at.step % every == 0 and self.at.step % self._steps:
                self._save_within()
        self._notify_epoch_finished()
        return stopped

    def _run_asynchronous_epoch(self, strategy: AsynchronousStrategy) -> bool:
        """As many steps as `_run_epoch` has, by single ranks: whoever is free takes the next.

        An error on one rank is raised there and ends the job: the others do not wait for this one.
        """
        parts, first = self.parts, self.at.step
        steps = min(self._steps - first % self._steps, self._total - first)
        sums, done = StepScalars(), 0
        strategy.begin_epoch(steps * strategy.workers)
        self._notify_epoch_started()
        batches = parts.feed.endless(first, self.config.train.epochs)
        strategy.serve()
        while not self._stop_requested:
            ticket = strategy.next_step()
            if ticket is None:
                break
            step = first + ticket // strategy.workers
            lr = parts.rate.at(step)
            own = parts.step.run(batches, lr, step=step)
            sums.add(own)
            done += 1
            self._report(step + 1, own, lr, int(own.count) * strategy.workers)
        self._notify_epoch_finished()
        strategy.end_epoch()
        sums.stop = float(self._stop_requested)
        stopped = bool(strategy.meet(sums).stop)
        finished = sum(self.context.allgather_object(done, int)) // strategy.workers
        self.at.step = first + (min(finished, steps) if stopped else steps)
        return stopped

    @property
    def _stop_requested(self) -> bool:
        return any(observer.stop_requested for observer in self.observers)

    def _notify_epoch_started(self) -> None:
        for observer in self.observers:
            observer.epoch_started()

    def _notify_epoch_finished(self) -> None:
        for observer in self.observers:
            observer.epoch_finished()

    def _report(self, step: int, sums: StepScalars, lr: float, samples: int) -> None:
        """Tell observers of a step.

        Args:
            step: Number of finished steps.
            sums: Of the ranks that have met in it.
            lr: Learning rate.
            samples: Of all ranks together, about.
        """
        count = max(sums.count, 1)
        if sums.count:
            first = (step - 1) % self._steps == 0
            self._average.add(sums.loss, sums.correct, int(sums.count), first=first)
        record = StepRecord(
            step=step,
            epoch=(step - 1) // self._steps,
            epochs=self.config.train.epochs,
            loss=sums.loss / count,
            metrics=step_metrics(self.parts.task, sums.correct / count),
            lr=lr,
            samples=samples,
            totals=self._totals(step),
        )
        for observer in self.observers:
            observer.step_finished(record)

    def _totals(self, step: int) -> Totals:
        seconds = time.monotonic() - self._started
        return Totals(seconds, self.parts.sampler.seen(step), self.parts.strategy.report_sent())

    # --- evaluation and checkpoints ---
    def _is_due(self) -> bool:
        """Whether there should be an evaluation at this step, but is none."""
        due = self.at.step % self._steps == 0 or self.at.step == self._total
        return self.parts.test is not None and due and self.at.evaluated != self.at.step

    def _evaluate(self) -> None:
        parts, step = self.parts, self.at.step
        if parts.test is None:
            return
        self._synchronize()
        inputs = parts.feed.inputs
        found = evaluate(
            parts.model, parts.loss, inputs, parts.test, self.context, EVALUATION_BATCH
        )
        self.at.last = found
        self.at.evaluated = step
        record = EvaluationRecord(
            step,
            math.ceil(step / self._steps),
            self.config.train.epochs,
            found,
            self._totals(step),
        )
        for observer in self.observers:
            observer.evaluated(record)

    def _synchronize(self) -> StepScalars:
        """Before parameters are used or saved. Collective."""
        return self.parts.step.synchronize(self.at.step)

    def _state_of_replicas(self) -> RunState | None:
        """Within an epoch a resumed run goes on from the replicas as they are, not their mean."""
        return self.saver.state() if self.at.step % self._steps else None

    def _save(self, state: RunState | None = None) -> None:
        """Write a checkpoint; `state`: from before the strategy synchronized, if it has."""
        state = state or self.saver.state()
        self._synchronize()
        record = self.saver.save(self.at, self._steps, state)
        for observer in self.observers:
            observer.saved(record)

    def _save_within(self) -> None:
        """Write a checkpoint within an epoch, and leave the replicas as they are.

        So the time of checkpoints changes no result.
        """
        strategy = self.parts.strategy
        differ = isinstance(strategy, SynchronousStrategy) and strategy.replicas_differ
        differ = differ or self.parts.step.shared.replicas_differ
        state = self.saver.state()
        self._save(state)
        if differ:
            self.saver.load_state(state)

    def _result(self, samples: int, stopped: bool) -> Result:
        seconds = time.monotonic() - self._started
        return Result(
            quality=self.at.last or self._average.seen,
            metric=self.parts.task.best,
            evaluated_on="test" if self.at.last else "training",
            epochs=math.ceil(self.at.step / self._steps),
            steps=self.at.step,
            seconds=seconds,
            samples_per_second=samples / seconds if seconds else 0.0,
            ranks=self.context.size,
            checkpoint=str(self.saver.saved) if self.saver.saved else None,
            stopped=stopped,
        )
