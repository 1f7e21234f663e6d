"""Keeps a run in its output folder: reserves the folder, writes checkpoints, resumes from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from mpidl.backend import Array
from mpidl.comm.context import Context
from mpidl.config import Config, SyncConfig
from mpidl.errors import CheckpointError, ConfigError, NumericsError
from mpidl.optim import RunState, Stateful
from mpidl.options import Place
from mpidl.security.sealed_file import check_sealed
from mpidl.task import Evaluation, InputSpec
from mpidl.train import checkpoint as ckpt
from mpidl.train.assemble import Parts
from mpidl.train.events import SavedRecord
from mpidl.train.observers import METRICS
from mpidl.train.origin import Origin


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        step: Finished steps.
        best_score: Of all evaluations at the ends of epochs; None before the first.
        last: The newest evaluation.
        evaluated: Its step; -1 before the first.
    """

    step: int = 0
    best_score: float | None = None
    last: Evaluation | None = None
    evaluated: int = -1


class Saver:
    """Checkpoints of one run. Its methods are collective.

    Args:
        config: Of the run.
        context: The ranks.
        parts: Of the run.
        average: What else has a state, besides the parts.
        say: Told what a user should know.

    Attributes:
        saved: The newest checkpoint.
    """

    def __init__(
        self,
        config: Config,
        context: Context,
        parts: Parts,
        average: Stateful,
        say: Callable[[str], None],
    ) -> None:
        self.config = config
        self.context = context
        self.task = parts.task
        self.spec = parts.task.spec
        self.model = parts.model
        self.optimizer = parts.step.optimizer
        self.strategy = parts.strategy
        self.gate = parts.gate
        self.say = say
        self.stateful: dict[str, Stateful] = {
            "strategy": parts.strategy,
            "scaler": parts.step.scaler,
            "statistics": parts.step.shared,
            "average": average,
        }
        self.output = Path(config.train.output)
        self.folder = self.output / "checkpoints"
        self.saved: Path | None = None
        self._readers = parts.readers
        self._origins: tuple[Origin, ...] = ()  # of the jobs before
        self.teacher = None if parts.teacher is None else parts.teacher.digest
        self._current = (-1, -1)  # step, and step of the evaluation, of `saved`

    def is_current(self, position: Position) -> bool:
        """Whether the newest checkpoint has all of this."""
        return self._current == (position.step, position.evaluated)

    def exists(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.context.on_root(
            lambda: bool(ckpt.list_checkpoints(self.folder)), f"looking into {self.folder}", bool
        )

    # --- a new run ---
    def prepare_folder(self, overwrite: bool) -> None:
        """Make the output folder ready for a new run.

        Args:
            overwrite: Delete what an earlier run has left there.

        Raises:
            ConfigError: It has checkpoints of an earlier run.
        """
        self.context.on_root(lambda: self._prepare_folder(overwrite), f"preparing {self.output}")

    def _prepare_folder(self, overwrite: bool) -> None:
        existing = ckpt.list_checkpoints(self.folder)
        if existing and not overwrite:
            raise ConfigError(
                "holds the checkpoints of an earlier run",
                where=str(self.output),
                remedy="resume it with --resume, delete them with --overwrite, or choose another "
                "train.output",
            )
        superseded = self.folder.glob("*.superseded*")
        signatures = self.folder.glob("*.h5.sig")
        own = (self.folder / ckpt.BEST, self.output / METRICS)
        for path in (*existing, *superseded, *signatures, *own):
            path.unlink(missing_ok=True)
        for path in (self.output / "tensorboard").glob("events.*"):
            path.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        text = msgspec.json.format(msgspec.json.encode(self.config.to_tree()), indent=2)
        (self.output / "config.json").write_bytes(text + b"\n")

    # --- resuming ---
    def restore(self, file: Path | None = None) -> tuple[Position, RunState]:
        """Fill model and optimizer from a checkpoint.

        Args:
            file: The checkpoint; None: the newest intact one.

        Returns:
            Where the run resumes, and the state for `load_state`.
        """

        def find() -> ckpt.Checkpoint:
            self.gate.require("resume")
            if file is None:
                found = ckpt.load_latest(self.folder, self.say, self.gate.file)
            else:
                with self.gate.file(file):
                    found = ckpt.read(file)
            if self.config.security.seal_for:
                check_sealed(found.path)
            return found

        saved = ckpt.load_for(self.context, find, "resuming", own=True)
        meta = saved.meta
        self._check(saved)
        self.context.on_root(
            lambda: ckpt.set_aside_later(self.folder, saved.path, meta.step, self.say),
            f"looking into {self.folder}",
        )
        self._origins = meta.origins
        self._fill(saved.buffers)
        self.say(f"resuming at step {meta.step} (epoch {meta.epoch + 1}) from {saved.path}")
        self._say_reordered(meta)
        at = Position(meta.step, meta.best_score)
        if "loss" in meta.metrics:
            metrics = dict(meta.metrics)
            at.evaluated = int(metrics.pop("step", meta.step))
            loss, samples = metrics.pop("loss"), int(metrics.pop("samples"))
            score = self.task.score(loss, metrics)
            at.last = Evaluation(loss, samples, metrics, score)
        self.saved = saved.path
        self._current = (at.step, at.evaluated)
        return at, self._usable(saved)

    def _fill(self, buffers: ckpt.Buffers) -> None:
        parameters, to_device = self.model.parameters, self.model.ops.to_device
        self.strategy.load_values(to_device(buffers["parameters"]))
        for name, array in self.optimizer.state.items():
            self.strategy.load_shard(buffers[f"optimizer.{name}"], array)
        if parameters.state.size:
            parameters.state[...] = to_device(buffers["state"])

    def _usable(self, saved: ckpt.Checkpoint) -> RunState:
        """The state without what belongs to other settings or ranks; says what that is."""
        meta, state, sync = saved.meta, saved.state, self.config.sync
        before = SyncConfig.read(meta.config["sync"], Place(("sync",)))
        if before.strategy != sync.strategy:
            dropped = state.take_section("strategy")
            self._say_dropped(dropped.names(), f"the run had the strategy {before.strategy!r}")
        elif _compressor(before) != _compressor(sync):
            dropped = state.take_section("strategy.compression")
            self._say_dropped(dropped.names(), f"compression was {_compressor(before)!r}")
        if meta.ranks != self.context.size:
            lost = [name for name in meta.own if name not in state.shared]
            self._say_dropped(
                lost, f"each of {meta.ranks} ranks had its own, now there are {self.context.size}"
            )
        return state

    def _say_reordered(self, meta: ckpt.Meta) -> None:
        before, now = meta.config.get("data", {}), msgspec.to_builtins(self.config.data)
        changed = [
            f"data.{key}"
            for key in ("shuffle", "window_bytes")
            if before.get(key, now[key]) != now[key]
        ]
        if changed and meta.epoch_step:
            self.say(
                f"note: {', '.join(changed)} changed: in this epoch some samples come twice, and "
                "others not at all"
            )

    def _say_dropped(self, names: Iterable[str], why: str) -> None:
        short = dict.fromkeys(name.split(":")[0] for name in names)
        if short:
            self.say(f"not used from the checkpoint: {', '.join(short)} ({why})")

    def _check(self, saved: ckpt.Checkpoint) -> None:
        """Refuse a checkpoint of another run. Every rank comes to the same result."""
        meta, where = saved.meta, str(saved.path)
        inputs = msgspec.convert(meta.inputs, InputSpec)
        if inputs.target.class_names is None:  # of a data set with numbers for labels
            named = msgspec.structs.replace(inputs.target, class_names=self.spec.target.class_names)
            inputs = msgspec.structs.replace(inputs, target=named)
        if meta.parameters != self._layout() or inputs != self.spec:
            remedy = (
                "resume with the configuration it was made with, or choose another train.output"
            )
            what = "belongs to another model or another kind of data"
            raise CheckpointError(what, where=where, remedy=remedy, agreed=True)
        before = meta.config["train"]
        for key in ("global_batch", "seed"):
            now = getattr(self.config.train, key)
            if before[key] != now:
                what = f"train.{key} is {now}, but the run to resume has {before[key]}"
                remedy = "the order of the data depends on it: keep it, or start a new run"
                raise ConfigError(what, where=where, remedy=remedy, agreed=True)
        if meta.teacher != self.teacher:
            what = "the run to resume does not learn from what task.distill names now"
            remedy = "resume with the teacher that it had, unchanged, or start a new run"
            raise ConfigError(what, where=where, remedy=remedy, agreed=True)
        if self._names() != set(saved.buffers) - {"parameters"}:
            optim, had = self.config.optim.name, meta.config["optim"]["name"]
            what = f"optim.name is {optim!r}, but the run to resume has {had!r}"
            remedy = "resume with the optimizer it was made with, or start a new run"
            raise ConfigError(what, where=where, remedy=remedy, agreed=True)

    def _layout(self) -> dict[str, tuple[int, list[int]]]:
        slots = self.model.parameters.slots
        return {name: (slot.start, list(slot.spec.shape)) for name, slot in slots.items()}

    def _names(self) -> set[str]:
        """What a checkpoint holds besides the parameters."""
        state = {"state"} if self.model.parameters.state.size else set()
        return {f"optimizer.{name}" for name in self.optimizer.state} | state

    # --- saving ---
    def state(self) -> RunState:
        """All that a resumed run needs besides the buffers, to be equal bit for bit.

        Asked for before `synchronize` (see `Strategy.state`).
        """
        state = RunState()
        for name, part in self.stateful.items():
            state.add(name, part.state())
        return state

    def load_state(self, state: RunState) -> None:
        """Resume from what `state` returned, once the strategy has started."""
        for name, part in self.stateful.items():
            section = state.take_section(name)
            part.load_state(section)
            self._say_dropped(section.names(), "the run has other buckets or settings now")

    def save(self, position: Position, steps: int, state: RunState) -> SavedRecord:
        """Write a checkpoint.

        Args:
            position: How far the run has come; its best score is updated.
            steps: Of one epoch.
            state: From before the strategy synchronized.
        """
        step, last = position.step, position.last
        values = self.strategy.values()
        self._refuse_nonfinite(values, step)
        best = False
        if last is not None and step % steps == 0 and position.evaluated == step:
            best = position.best_score is None or last.score > position.best_score
            position.best_score = last.score if best else position.best_score
        every = {"parameters": values} | self._buffers()
        buffers = {name: self.model.ops.to_host(array) for name, array in every.items()}
        self.saved = ckpt.save(
            self.folder,
            self._meta(position, steps),
            buffers,
            self.context,
            keep=self.config.checkpoint.keep,
            best=best,
            state=state,
            seal_for=self.config.security.seal_for,
        )
        self._current = (step, position.evaluated)
        return SavedRecord(step, self.saved, best)

    def _refuse_nonfinite(self, values: Array, step: int) -> None:
        broken = self.model.parameters.first_nonfinite(values)
        if broken:
            error = NumericsError(
                f"parameter {broken} is not finite after step {step}; it was not saved",
                remedy="lower optim.lr; resume from the last checkpoint with --resume",
            )
            self.context.raise_on_all(error, "checkpointing")

    def _meta(self, position: Position, steps: int) -> ckpt.Meta:
        metrics: dict[str, float] = {}
        if position.last is not None:
            metrics = position.last.record() | {"step": position.evaluated}
        return ckpt.Meta(
            version=ckpt.VERSION,
            step=position.step,
            epoch=position.step // steps,
            epoch_step=position.step % steps,
            config=self.config.to_tree(),
            inputs=msgspec.to_builtins(self.spec),
            parameters=self._layout(),
            metrics=metrics,
            best_score=position.best_score,
            origins=self._all_origins() if self.context.is_root else (),
            teacher=self.teacher,
        )

    @cached_property
    def origin(self) -> Origin:
        """What this job is made of."""
        return Origin.of(self._readers, self.model.ops, self.context)

    def _all_origins(self) -> tuple[Origin, ...]:
        """What the jobs before were made of, and this one unless it is of the same."""
        before = self._origins
        return before if before and before[-1] == self.origin else (*before, self.origin)

    def _buffers(self) -> dict[str, Array]:
        own = {
            f"optimizer.{name}": self.strategy.gather_full(array)
            for name, array in self.optimizer.state.items()
        }
        state = self.model.parameters.state
        return own | ({"state": state} if state.size else {})


def _compressor(sync: SyncConfig) -> str:
    """The name of the compressor; "none" also for strategies without."""
    return getattr(getattr(sync.options, "compression", None), "name", "none")
