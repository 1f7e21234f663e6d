"""The training loop: read, forward, backward, exchange, update; evaluate and checkpoint; stop together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mpidl.backend import create_ops
from mpidl.collectives.safety import watchdog
from mpidl.comm.context import Context
from mpidl.config import Config
from mpidl.data import Batch, LaneSampler, Loader, Reader
from mpidl.data.sampler import window_steps
from mpidl.errors import NumericsError, wrap
from mpidl.models.weights import load_weights
from mpidl.nn import CrossEntropy
from mpidl.observe.metrics import MetricsLog, read_metrics
from mpidl.observe.progress import Progress
from mpidl.optim import (
    LearningRate,
    LossScaler,
    Parameters,
    RunState,
    Stateful,
    clip_by_global_norm,
)
from mpidl.sync import AsynchronousStrategy, StepScalars, SynchronousStrategy
from mpidl.train.build import build_classifier, build_optimizer, build_strategy
from mpidl.train.evaluate import EpochAverage, evaluate
from mpidl.train.independent import run_epoch
from mpidl.train.inputs import Inputs, input_spec
from mpidl.train.saving import Position, Saver, agreed
from mpidl.train.signals import StopRequest
from mpidl.train.step import StepGradients

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Result:
    """What a run came to.

    loss, accuracy, samples: of the last evaluation on the "test" data; without one, of the last epoch's batches as they were
    trained on ("training"); evaluated_on says which."""

    loss: float
    accuracy: float
    evaluated_on: Literal["test", "training"]
    samples: int
    epochs: int
    steps: int
    seconds: float
    samples_per_second: float
    ranks: int
    checkpoint: str | None
    stopped: bool


@dataclass
class Work:
    """What this rank has done: samples, and the seconds from the start of each epoch to its last step in it."""

    samples: int = 0
    seconds: float = 0.0


class Trainer:
    """Trains one model as a configuration says. All ranks make one, and call `run`, together."""

    def __init__(
        self, config: Config, context: Context, *, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self.config, self.context, self.say = config, context, say
        self.output = Path(config.train.output)
        data, driver = config.data, config.data.driver
        self.reader = Reader(data.train, context=context, driver=driver, verify=data.verify)
        with context.fail_together("setting up the model"):
            self.spec = input_spec(
                self.reader.manifest,
                data,
                data.train,
                config.model.name,
                lambda text: say(f"note: {text}"),
            )
            self.ops = create_ops(config.backend.name, context.local_rank, context.threads)
            precision = config.train.precision
            self.model = build_classifier(config.model, self.spec, self.ops, precision)
            sync = config.sync
            train_ranks = sync.chosen.training_ranks(sync.options, context.size)
            run = config.run_info(
                ranks=context.size,
                needs_collective=self.model.needs_collective,
                host_memory=self.ops.name == "numpy",
            )
            sync.chosen.check(sync.options, run)
            self.inputs = Inputs(self.spec, self.ops, self.model.parameters.compute_dtype)
            manifest, batch = self.reader.manifest, config.train.global_batch
            self.sampler = LaneSampler(
                manifest.samples,
                batch,
                min(context.rank, train_ranks - 1),
                train_ranks,
                seed=config.train.seed,
                shuffle=data.shuffle,
                window=window_steps(
                    manifest.samples, batch, manifest.sample_bytes, data.window_bytes
                ),
            )
        self.test: Reader | None = None
        if data.test is not None:
            self.test = Reader(data.test, context=context, driver="posix", verify=data.verify)
            with context.fail_together("checking the test data"):
                self.spec.check(self.test.manifest, data.test)
        self.loader = Loader(self.reader, self.sampler, context=context)
        self.loss = CrossEntropy(self.ops, label_smoothing=config.train.label_smoothing)
        parameters, optim, train = self.model.parameters, config.optim, config.train
        self.scaler = LossScaler(parameters, dynamic=train.precision == "float16")
        watchdog.start(context.comm, config.sync.watchdog)
        run = replace(run, epoch_steps=self.loader.steps)
        self.strategy = build_strategy(sync, parameters, context, run)
        self.optimizer = build_optimizer(optim, self.strategy.shard, self.ops)
        self.strategy.optimizer = self.optimizer
        parts = (
            self.model,
            self.inputs,
            self.loss,
            self.sampler,
            self.strategy,
            self.scaler,
            context,
        )
        self.gradients = StepGradients(
            *parts, train.micro_batches, train.seed, config.backend.graphs
        )
        steps = self.loader.steps
        self.rate = LearningRate(
            optim.peak_rate(train.global_batch),
            steps * config.train.epochs,
            optim.schedule,
            int(optim.warmup_epochs * steps),
            optim.floor,
            [int(epoch * steps) for epoch in optim.milestones],
            optim.gamma,
        )
        self.at = Position()
        self._error: Exception | None = None  # of this rank, until the ranks meet
        self._average = EpochAverage()
        more: dict[str, Stateful] = {
            "scaler": self.scaler,
            "statistics": self.gradients.shared,
            "average": self._average,
        }
        self.saver = Saver(
            config, context, self.spec, self.model, self.optimizer, self.strategy, more, say
        )
        self.worked = Work()

    # --- start and end ---
    def prepare(
        self,
        *,
        resume: bool = False,
        auto_resume: bool = False,
        resume_from: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        """Start from fresh parameters, or from the newest intact checkpoint. Collective.

        auto_resume: resume if the output folder has a checkpoint; resume_from: from this file; overwrite: throw away what is
        there.
        """
        state: RunState | None = None
        if resume or resume_from is not None or (auto_resume and self.saver.exists()):
            self.at, state = self.saver.restore(resume_from)
        else:
            self.saver.claim(overwrite)
            self.strategy.initialize(self.config.train.seed)
            if self.config.model.weights:
                with self.context.fail_together("loading weights"):
                    load_weights(self.model, self.config.model.weights)
        self.optimizer.count = self.at.step
        self.strategy.start()
        if state is not None:
            self.saver.load_state(state)

    # --- the loop ---
    def run(self, *, quiet: bool = False) -> Result:
        """Train to the end, or until a signal asks to stop. Collective; returns the same on every rank."""
        train, steps = self.config.train, self.loader.steps
        total = min(train.epochs * steps, train.max_steps or train.epochs * steps)
        metrics = MetricsLog(self.output) if self.context.is_root else None
        if metrics and self.at.step:
            metrics.add("resume", self.at.step, {"ranks": self.context.size})
        progress = Progress(
            self.sampler.seen(total),
            "samples",
            initial=self.sampler.seen(self.at.step),
            quiet=quiet or not self.context.is_root,
        )
        request, started, first, stopped = StopRequest(), time.monotonic(), self.at.step, False
        self.started = started
        try:
            if self.at.step and self._is_due(total):  # a signal came in the last step before it
                state = None if self.at.step % steps == 0 else self.saver.state()
                self._evaluate(metrics, progress)
                self._save(state)
            while self.at.step < total and not stopped:
                stopped = self._epoch(
                    self.at.step // steps, self.at.step % steps, total, request, metrics, progress
                )
                whole_epoch = self.at.step % steps == 0
                # within an epoch a resumed run goes on from the replicas as they are, not from their mean
                state = None if whole_epoch else self.saver.state()
                stopped = bool(self._synchronize().stop) or stopped
                if self._is_due(total) and not stopped:
                    self._evaluate(metrics, progress)
                if not self.saver.is_current(self.at):
                    self._save(state)
        finally:
            request.release()
            self.loader.close()
            progress.close()
            if metrics:
                metrics.close()
        return self._result(
            time.monotonic() - started,
            self.sampler.seen(self.at.step) - self.sampler.seen(first),
            stopped,
        )

    def close(self) -> None:
        """Close the data sets. Collective: files that are open through mpio are closed by all ranks together."""
        for reader in (self.reader, self.test):
            if reader is not None:
                reader.close()

    def _epoch(
        self,
        epoch: int,
        first: int,
        total: int,
        request: StopRequest,
        metrics: MetricsLog | None,
        progress: Progress,
    ) -> bool:
        """Steps of one epoch from `first` on; True when all ranks have agreed to stop."""
        if isinstance(self.strategy, AsynchronousStrategy):
            steps = min(self.loader.steps - first, total - self.at.step)
            return bool(run_epoch(self, steps, request, metrics, progress).stop)
        batches, begun = self.loader.epoch(epoch, first), time.monotonic()
        try:
            return self._steps(batches, first, total, request, metrics, progress)
        finally:
            self.worked.seconds += time.monotonic() - begun

    def _steps(
        self,
        batches: Iterator[Batch],
        first: int,
        total: int,
        request: StopRequest,
        metrics: MetricsLog | None,
        progress: Progress,
    ) -> bool:
        for _ in range(first, self.loader.steps):
            if self.at.step >= total:
                return False
            sums = self._train_step(batches, request, progress, metrics)
            if sums.stop:
                progress.say(f"asked to stop by a signal: saving at step {self.at.step}")
                return True
            every = self.config.checkpoint.every_steps
            if every and self.at.step % every == 0 and self.at.step % self.loader.steps:
                self._save_within()
        return False

    def _train_step(
        self, batches: Any, request: StopRequest, progress: Progress, metrics: MetricsLog | None
    ) -> StepScalars:
        assert isinstance(self.strategy, SynchronousStrategy)
        own = StepScalars(stop=float(request.requested))
        try:
            self.gradients.compute(self.at.step, next(batches), own)
            if self.strategy.averages_locally and not math.isfinite(own.loss):
                raise self.not_finite()
        except Exception as caught:
            if self.model.parameters.gathers_in_passes:
                raise
            self._error, own.failed = caught, 1.0
            self.gradients.tree.reset()
        self.worked.samples += int(own.count)
        lr = self.rate.at(self.at.step)
        sums = self.strategy.step(own, lambda: self._apply(lr))
        self._check(sums, own)
        self.at.step += 1
        samples = self.sampler.count((self.at.step - 1) % self.loader.steps)
        self.report(self.at.step, sums, lr, metrics, progress, samples)
        return sums

    def _apply(self, lr: float) -> None:
        """The optimizer's step, unless 16-bit gradients have overflowed."""
        if self.scaler.accept(self.strategy.shard):
            self.clip(self.strategy.shard)
            self.optimizer.step(lr)

    def clip(self, part: Parameters | None = None) -> None:
        """Clip the gradients of a part, or of all of this rank's, as the configuration says."""
        if self.config.optim.clip_norm:
            clip_by_global_norm(
                part or self.model.parameters, self.ops, self.config.optim.clip_norm
            )

    def _check(self, sums: StepScalars, own: StepScalars) -> None:
        """Where the ranks have met: raise on all of them what went wrong on any."""
        if sums.failed:
            self.context.raise_on_all(self._error, f"training step {self.at.step + 1}")
        if not math.isfinite(sums.loss) and not self.strategy.averages_locally:
            self.context.raise_on_all(
                None if math.isfinite(own.loss) else self.not_finite(), "training"
            )
            raise agreed(self.not_finite())

    def _synchronize(self) -> StepScalars:
        """Before parameters are used or saved."""
        self.gradients.shared.synchronize()
        sums = self.strategy.synchronize()
        self._check(sums, StepScalars())
        return sums

    def not_finite(self) -> NumericsError:
        """Names what can be known: the first parameter that went wrong."""
        parameters = self.model.parameters
        broken = parameters.first_nonfinite(parameters.values)
        what = f"the loss is not finite at step {self.at.step + 1}"
        what += f"; parameter {broken} is not finite: the training diverged" if broken else ""
        remedy = "lower optim.lr or add optim.warmup_epochs; check the inputs; the last checkpoint is intact"
        return NumericsError(what, remedy=remedy)

    def report(
        self,
        step: int,
        sums: StepScalars,
        lr: float,
        metrics: MetricsLog | None,
        progress: Progress,
        samples: int,
    ) -> None:
        """One record of a step. sums: of the ranks that have met in it; samples: of all ranks together, about."""
        loss, accuracy = sums.loss / max(sums.count, 1), sums.correct / max(sums.count, 1)
        if sums.count:
            self._average.add(
                sums.loss, sums.correct, int(sums.count), first=(step - 1) % self.loader.steps == 0
            )
        epoch = (step - 1) // self.loader.steps
        progress.advance(samples, f"epoch {epoch + 1}/{self.config.train.epochs} loss {loss:.4f}")
        if metrics and (step % self.config.train.log_every == 0 or step == 1):
            metrics.add(
                "step",
                step,
                {
                    "epoch": epoch,
                    "loss": loss,
                    "accuracy": accuracy,
                    "lr": lr,
                    **self._so_far(step),
                },
            )

    def _so_far(self, step: int) -> dict[str, float]:
        """For comparisons: seconds since the start of the run, samples over all ranks, bytes sent by this one."""
        sent = self.strategy.report_sent()
        return {
            "seconds": time.monotonic() - self.started,
            "seen": self.sampler.seen(step),
            "sent_bytes": sent,
        }

    # --- evaluation and checkpoints ---
    def _is_due(self, total: int) -> bool:
        """Whether there should be an evaluation at this step, but is none."""
        due = self.at.step % self.loader.steps == 0 or self.at.step == total
        return self.test is not None and due and self.at.evaluated != self.at.step

    def _evaluate(self, metrics: MetricsLog | None, progress: Progress) -> None:
        assert self.test is not None
        self._synchronize()
        self.at.last = evaluate(
            self.model, self.loss, self.inputs, self.test, self.context, EVALUATION_BATCH
        )
        self.at.evaluated = self.at.step
        if metrics:
            metrics.add(
                "evaluation", self.at.step, asdict(self.at.last) | self._so_far(self.at.step)
            )
        done = math.ceil(self.at.step / self.loader.steps)
        progress.say(
            f"epoch {done}/{self.config.train.epochs}: test accuracy {100 * self.at.last.accuracy:.2f} %, "
            f"test loss {self.at.last.loss:.4f}"
        )

    def _save(self, state: RunState | None = None) -> None:
        """state: from before the strategy settled, if it has."""
        state = state or self.saver.state()
        self._synchronize()
        self.saver.save(self.at, self.loader.steps, state)

    def _save_within(self) -> None:
        """A checkpoint within an epoch leaves the replicas as they are: when one is written changes no result."""
        assert isinstance(self.strategy, SynchronousStrategy)
        replicas_differ, state = (
            self.strategy.replicas_differ or self.gradients.shared.replicas_differ,
            self.saver.state(),
        )
        self._save(state)
        if replicas_differ:
            self.saver.load_state(state)

    def _result(self, seconds: float, samples: int, stopped: bool) -> Result:
        final = self.at.last or self._average.seen
        if self.context.is_root:
            try:
                self._plot()
            except (
                OSError
            ) as error:  # the run is done and saved: a picture is no reason to call it failed
                self.say(f"note: the curves could not be drawn: {wrap(error, 'drawing')}")
        return Result(
            loss=final.loss,
            accuracy=final.accuracy,
            evaluated_on="test" if self.at.last else "training",
            samples=final.samples,
            epochs=math.ceil(self.at.step / self.loader.steps),
            steps=self.at.step,
            seconds=seconds,
            samples_per_second=samples / seconds if seconds else 0.0,
            ranks=self.context.size,
            checkpoint=str(self.saver.saved) if self.saver.saved else None,
            stopped=stopped,
        )

    def _plot(self) -> None:
        from mpidl.observe.plot import plot_run

        records = read_metrics(self.output / "metrics.jsonl")
        title = f"{self.config.model.name}, {self.context.size} rank(s), global batch {self.config.train.global_batch}"
        plot_run(records, self.output / "training.png", title)
