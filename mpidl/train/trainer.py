"""The training loop: read, forward, backward, exchange, update; evaluate and checkpoint; stop together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from mpidl.backend import create_ops
from mpidl.cluster.signals import StopRequest
from mpidl.collectives import watchdog
from mpidl.comm.context import Context
from mpidl.data import Batch, LaneSampler, Loader, Reader
from mpidl.data.sampler import window_steps
from mpidl.errors import CheckpointError, ConfigError, NumericsError
from mpidl.models.weights import load_weights
from mpidl.nn import GradientsReady, SoftmaxCrossEntropy
from mpidl.observe.metrics import MetricsLog, read_metrics
from mpidl.observe.progress import Progress
from mpidl.optim import LearningRate, clip_by_global_norm
from mpidl.sync import StepScalars
from mpidl.train import checkpoint as ckpt
from mpidl.train.accumulate import TreeSum
from mpidl.train.build import build_model, make_optimizer, make_strategy
from mpidl.train.config import Config
from mpidl.train.evaluate import Evaluation, evaluate
from mpidl.train.inputs import Inputs, InputSpec, input_spec
from mpidl.train.shared_state import SharedState

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Result:
    """What a run came to.

    loss, accuracy, samples: of the last evaluation; without test data, of the last epoch's batches as they were trained on."""

    loss: float
    accuracy: float
    samples: int
    epochs: int
    steps: int
    seconds: float
    samples_per_second: float
    ranks: int
    checkpoint: str | None
    stopped: bool


class Trainer:
    """Trains one model as a configuration says. All ranks make one, and call `run`, together."""

    def __init__(self, config: Config, context: Context, *, say: Callable[[str], None] = lambda text: None) -> None:
        self.config, self.context, self.say = config, context, say
        self.output = Path(config.train.output)
        data, driver = config.data, config.data.driver
        self.reader = Reader(data.train, context=context, driver=driver, verify=data.verify)
        with context.together("setting up the model"):
            self.spec = input_spec(self.reader.manifest, data, data.train)
            self.ops = create_ops(config.backend.name, context.local_rank, context.threads)
            self.model = build_model(config.model, self.spec, self.ops)
            self.inputs = Inputs(self.spec, self.ops)
            manifest, batch = self.reader.manifest, config.train.global_batch
            self.sampler = LaneSampler(
                manifest.samples,
                batch,
                context.rank,
                context.size,
                seed=config.train.seed,
                shuffle=data.shuffle,
                window=window_steps(manifest.samples, batch, manifest.sample_bytes, data.window_bytes),
            )
        self.test: Reader | None = None
        if data.test is not None:
            self.test = Reader(data.test, context=context, driver="posix", verify=data.verify)
            with context.together("checking the test data"):
                self.spec.check(self.test.manifest, data.test)
        self.loader = Loader(self.reader, self.sampler, context=context)
        self.loss = SoftmaxCrossEntropy(self.ops, smoothing=config.train.label_smoothing)
        parameters, optim = self.model.parameters, config.optim
        self.optimizer = make_optimizer(optim, parameters, self.ops)
        self.shared = SharedState(self.model, context, config.train.seed)
        watchdog.start(context.comm, config.sync.watchdog)
        self.strategy = make_strategy(config, parameters, context)
        whole = config.train.micro_batches % context.size == 0
        self.tree = TreeSum(parameters, config.train.micro_batches // context.size if whole else 1)
        steps = self.loader.steps
        self.rate = LearningRate(
            optim.lr,
            steps * config.train.epochs,
            optim.schedule,
            int(optim.warmup_epochs * steps),
            optim.floor,
            [int(epoch * steps) for epoch in optim.milestones],
            optim.gamma,
        )
        self.step, self.best_accuracy = 0, -1.0
        self.last: Evaluation | None = None
        self.saved: Path | None = None
        self._saved_step = -1
        self._seen = Evaluation(math.nan, 0.0, 0)  # over the training batches of the epoch so far

    # --- start and end ---
    def prepare(self, *, resume: bool = False, auto_resume: bool = False, overwrite: bool = False) -> None:
        """Start from fresh parameters, or from the newest intact checkpoint. Collective.

        auto_resume: resume if the output folder has a checkpoint; overwrite: throw away what is there.
        """
        folder = self.output / "checkpoints"
        if auto_resume:
            resume = self.context.on_root(lambda: bool(ckpt.list_checkpoints(folder)), f"looking into {folder}")
        if resume:
            self._restore(ckpt.load_for(self.context, lambda: ckpt.load_latest(folder, self.say), "resuming"))
        else:
            self.context.on_root(lambda: self._claim(folder, overwrite), f"preparing {self.output}")
            self.model.parameters.initialise(self.config.train.seed)
            if self.config.model.weights:
                with self.context.together("loading weights"):
                    load_weights(self.model, self.config.model.weights)
        self.optimizer.count = self.step
        self.strategy.begin()

    def _claim(self, folder: Path, overwrite: bool) -> None:
        existing = ckpt.list_checkpoints(folder)
        if existing and not overwrite:
            raise ConfigError(
                "holds the checkpoints of an earlier run",
                where=str(self.output),
                remedy="go on with --resume, throw them away with --overwrite, or choose another train.output",
            )
        for path in [*existing, folder / ckpt.BEST, self.output / "metrics.jsonl"]:
            path.unlink(missing_ok=True)
        for path in (self.output / "tensorboard").glob("events.*"):
            path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        msgspec_config = msgspec.json.format(msgspec.json.encode(self.config), indent=2)
        (self.output / "config.json").write_bytes(msgspec_config + b"\n")

    def _restore(self, saved: ckpt.Checkpoint) -> None:
        meta, values = saved.meta, self.model.parameters.values
        if meta.parameters != self._layout() or msgspec.convert(meta.inputs, InputSpec) != self.spec:
            raise _agreed(
                CheckpointError(
                    "belongs to another model or another kind of data",
                    where=str(saved.path),
                    remedy="resume with the configuration it was made with, or choose another train.output",
                )
            )
        before = meta.config["train"]
        for key in ("global_batch", "seed"):
            if before[key] != getattr(self.config.train, key):
                raise _agreed(
                    ConfigError(
                        f"train.{key} is {getattr(self.config.train, key)}, but the run to resume has {before[key]}",
                        where=str(saved.path),
                        remedy="the order of the data depends on it: keep it, or start anew",
                    )
                )
        values[...] = self.ops.to_device(saved.buffers["parameters"])
        wanted = {f"optimizer.{name}": array for name, array in self.optimizer.state.items()} | self._state()
        if set(wanted) != set(saved.buffers) - {"parameters"}:
            raise _agreed(
                ConfigError(
                    f"optim.name is {self.config.optim.name!r}, but the run to resume has {meta.config['optim']['name']!r}",
                    where=str(saved.path),
                    remedy="resume with the optimizer it was made with, or start anew",
                )
            )
        for name, array in wanted.items():
            array[...] = self.ops.to_device(saved.buffers[name])
        self.step, self.best_accuracy, self.saved, self._saved_step = (
            meta.step,
            meta.best_accuracy,
            saved.path,
            meta.step,
        )
        if "accuracy" in meta.metrics:
            self.last = Evaluation(meta.metrics["loss"], meta.metrics["accuracy"], int(meta.metrics["samples"]))
        self.say(f"resuming at step {meta.step} (epoch {meta.epoch + 1}) from {saved.path}")

    def _layout(self) -> dict[str, tuple[int, list[int]]]:
        return {name: (slot.start, list(slot.spec.shape)) for name, slot in self.model.parameters.slots.items()}

    def _state(self) -> dict[str, Any]:
        state = self.model.parameters.state
        return {"state": state} if state.size else {}

    # --- the loop ---
    def run(self, *, quiet: bool = False) -> Result:
        """Train to the end, or until a signal asks to stop. Collective; returns the same on every rank."""
        train, steps = self.config.train, self.loader.steps
        total = min(train.epochs * steps, train.max_steps or train.epochs * steps)
        metrics = MetricsLog(self.output) if self.context.is_root else None
        if metrics and self.step:
            metrics.add("resume", self.step, {"ranks": self.context.size})
        progress = Progress(
            self.sampler.seen(total),
            "samples",
            initial=self.sampler.seen(self.step),
            quiet=quiet or not self.context.is_root,
        )
        request, started, first, stopped = StopRequest(), time.monotonic(), self.step, False
        try:
            while self.step < total and not stopped:
                stopped = self._epoch(self.step // steps, self.step % steps, total, request, metrics, progress)
                whole_epoch = self.step % steps == 0
                if self.test is not None and (whole_epoch or self.step == total) and not stopped:
                    self._evaluate(metrics, progress)
                if self.step != self._saved_step:
                    self._save()
        finally:
            request.release()
            self.loader.close()
            progress.close()
            if metrics:
                metrics.close()
        return self._result(time.monotonic() - started, self.sampler.seen(self.step) - self.sampler.seen(first), stopped)

    def _epoch(
        self, epoch: int, first: int, total: int, request: StopRequest, metrics: MetricsLog | None, progress: Progress
    ) -> bool:
        """Steps of one epoch from `first` on; True when all ranks have agreed to stop."""
        batches = self.loader.epoch(epoch, first)
        for _ in range(first, self.loader.steps):
            if self.step >= total:
                return False
            sums = self._train_step(batches, epoch, request, progress, metrics)
            if sums.stop:
                progress.say(f"asked to stop by a signal: saving at step {self.step}")
                return True
            every = self.config.checkpoint.every_steps
            if every and self.step % every == 0 and self.step % self.loader.steps:
                self._save()
        return False

    def _train_step(
        self, batches: Any, epoch: int, request: StopRequest, progress: Progress, metrics: MetricsLog | None
    ) -> StepScalars:
        own, error = StepScalars(stop=float(request.requested)), None
        try:
            self._gradients(next(batches), own)
        except Exception as caught:
            error, own.failed = caught, 1.0
            self.tree.reset()
            self.strategy.note(own)
        sums = self.strategy.finish()
        if sums.failed:
            self.context.agree(error, f"training step {self.step + 1}")
        if not math.isfinite(sums.loss):
            self._stop_on_nonfinite(own.loss)
        lr = self.rate.at(self.step)
        if self.config.optim.clip_norm:
            clip_by_global_norm(self.model.parameters, self.ops, self.config.optim.clip_norm)
        self.optimizer.step(lr)
        self.step += 1
        count = self.sampler.count((self.step - 1) % self.loader.steps)
        self._report(epoch, sums, count, lr, metrics, progress)
        return sums

    def _gradients(self, batch: Batch, own: StepScalars) -> None:
        """Leave the gradients of this rank's part in the message, summed over its micro-batches; `own` gets its scalars."""
        cuts = self.sampler.cuts(batch.step, self.config.train.micro_batches)
        length, whole = self.model.parameters.length, len(self.model.parameters.message)
        for index, (low, high) in enumerate(pairwise(cuts)):
            self.shared.begin(self.step, index, len(cuts) - 1)
            last = self.tree.at_last  # only then do gradients leave
            loss, correct = self._micro_batch(batch, low, high, self._final if last else None)
            self.strategy.note(StepScalars(loss, correct, stop=own.stop if low == cuts[0] else 0.0))
            self.tree.add_part(length if last else 0, whole)
            self.tree.advance()
            own.loss, own.correct = own.loss + loss, own.correct + correct

    def _final(self, start: int, stop: int) -> None:
        """Gradients [start, stop) of the last micro-batch are there."""
        self.tree.add_part(start, stop)
        self.strategy.ready(start, stop)

    def _micro_batch(self, batch: Batch, low: int, high: int, ready: GradientsReady | None) -> tuple[float, float]:
        """Gradients of samples [low, high) of the batch, divided by the global batch; returns the sums of loss and hits."""
        if low == high and not self.model.synchronises:
            self.model.parameters.gradients[...] = 0
            if ready is not None:
                ready(0, self.model.parameters.length)
            return 0.0, 0.0
        x = self.inputs.features(batch.arrays[self.spec.feature][low:high])
        labels = self.inputs.labels(batch.arrays[self.spec.label][low:high])
        logits, backward = self.model.forward(x, train=True)
        result = self.loss(logits, labels, batch.global_count)
        backward(result.gradient, ready)
        return result.total, float(result.correct)

    def _stop_on_nonfinite(self, own_loss: float) -> None:
        """Raise on every rank, naming what can be known: the rank, and the first parameter that went wrong."""
        parameters = self.model.parameters
        broken = parameters.first_nonfinite(parameters.values)
        what = f"the loss is not finite at step {self.step + 1}"
        what += f"; parameter {broken} is not finite: the training diverged" if broken else ""
        remedy = "lower optim.lr or add optim.warmup_epochs; check the inputs; the last checkpoint is intact"
        error = NumericsError(what, remedy=remedy)
        self.context.agree(None if math.isfinite(own_loss) else error, "training")
        raise _agreed(error)

    def _report(
        self, epoch: int, sums: StepScalars, count: int, lr: float, metrics: MetricsLog | None, progress: Progress
    ) -> None:
        loss, accuracy = sums.loss / count, sums.correct / count
        before = self._seen.samples if (self.step - 1) % self.loader.steps else 0
        seen = before + count
        total_loss = (self._seen.loss * before if before else 0.0) + sums.loss
        self._seen = Evaluation(total_loss / seen, (self._seen.accuracy * before + sums.correct) / seen, seen)
        progress.advance(count, f"epoch {epoch + 1}/{self.config.train.epochs} loss {loss:.4f}")
        if metrics and (self.step % self.config.train.log_every == 0 or self.step == 1):
            metrics.add("step", self.step, {"epoch": epoch, "loss": loss, "accuracy": accuracy, "lr": lr})

    # --- evaluation and checkpoints ---
    def _evaluate(self, metrics: MetricsLog | None, progress: Progress) -> None:
        assert self.test is not None
        self.shared.settle()
        self.last = evaluate(self.model, self.loss, self.inputs, self.test, self.context, EVALUATION_BATCH)
        if metrics:
            metrics.add("evaluation", self.step, asdict(self.last))
        done = math.ceil(self.step / self.loader.steps)
        progress.say(
            f"epoch {done}/{self.config.train.epochs}: test accuracy {100 * self.last.accuracy:.2f} %, "
            f"test loss {self.last.loss:.4f}"
        )

    def _save(self) -> None:
        parameters, steps = self.model.parameters, self.loader.steps
        self.shared.settle()
        broken = parameters.first_nonfinite(parameters.values)
        if broken:
            self.context.agree(
                NumericsError(
                    f"parameter {broken} is not finite after step {self.step}; it was not saved",
                    remedy="lower optim.lr; go on from the last checkpoint with --resume",
                ),
                "checkpointing",
            )
        fresh = self.last is not None and self.step % steps == 0
        best = fresh and self.last is not None and self.last.accuracy > self.best_accuracy
        if best and self.last is not None:
            self.best_accuracy = self.last.accuracy
        meta = ckpt.Meta(
            version=ckpt.VERSION,
            step=self.step,
            epoch=self.step // steps,
            epoch_step=self.step % steps,
            config=msgspec.to_builtins(self.config),
            inputs=msgspec.to_builtins(self.spec),
            parameters=self._layout(),
            metrics=asdict(self.last) if self.last else {},
            best_accuracy=self.best_accuracy,
        )
        buffers = {"parameters": self.ops.to_host(parameters.values)}
        buffers |= {f"optimizer.{name}": self.ops.to_host(array) for name, array in self.optimizer.state.items()}
        buffers |= {name: self.ops.to_host(array) for name, array in self._state().items()}
        self.saved = ckpt.save(
            self.output / "checkpoints", meta, buffers, self.context, keep=self.config.checkpoint.keep, best=best
        )
        self._saved_step = self.step

    def _result(self, seconds: float, samples: int, stopped: bool) -> Result:
        final = self.last or self._seen
        if self.context.is_root:
            self._plot()
        return Result(
            loss=final.loss,
            accuracy=final.accuracy,
            samples=final.samples,
            epochs=math.ceil(self.step / self.loader.steps),
            steps=self.step,
            seconds=seconds,
            samples_per_second=samples / seconds if seconds else 0.0,
            ranks=self.context.size,
            checkpoint=str(self.saved) if self.saved else None,
            stopped=stopped,
        )

    def _plot(self) -> None:
        from mpidl.observe.plot import plot_run

        records = read_metrics(self.output / "metrics.jsonl")
        title = f"{self.config.model.name}, {self.context.size} rank(s), global batch {self.config.train.global_batch}"
        plot_run(records, self.output / "training.png", title)


def _agreed(error: Any) -> Any:
    """Mark an error that every rank raises by itself."""
    error.agreed = True
    return error
