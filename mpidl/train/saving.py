"""Keeps a run in its output folder: claims the folder, writes checkpoints, and goes on from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from mpidl.backend import Array
from mpidl.comm.context import Context
from mpidl.config import Config, SyncConfig
from mpidl.errors import CheckpointError, ConfigError, NumericsError
from mpidl.nn import Model
from mpidl.optim import Optimizer, RunState, Stateful
from mpidl.options import Place
from mpidl.sync import Strategy
from mpidl.train import checkpoint as ckpt
from mpidl.train.evaluate import Evaluation
from mpidl.train.inputs import InputSpec


@dataclass
class Position:
    """How far a run has come. last: the newest evaluation, at step `evaluated`; best_accuracy: of all, -1 before."""

    step: int = 0
    best_accuracy: float = -1.0
    last: Evaluation | None = None
    evaluated: int = -1


class Saver:
    """Checkpoints of one run. saved: the newest one. Its methods are collective.

    more: what has a state to save besides the strategy, by name.
    """

    def __init__(
        self,
        config: Config,
        context: Context,
        spec: InputSpec,
        model: Model,
        optimizer: Optimizer,
        strategy: Strategy,
        more: dict[str, Stateful],
        say: Callable[[str], None],
    ) -> None:
        self.config, self.context, self.spec, self.model, self.optimizer = (
            config,
            context,
            spec,
            model,
            optimizer,
        )
        self.strategy, self.say = strategy, say
        self.stateful: dict[str, Stateful] = {"strategy": strategy, **more}
        self.output = Path(config.train.output)
        self.folder = self.output / "checkpoints"
        self.saved: Path | None = None
        self._current = (-1, -1)  # step, and step of the evaluation, of `saved`

    def is_current(self, position: Position) -> bool:
        """Whether the newest checkpoint has all of this."""
        return self._current == (position.step, position.evaluated)

    def exists(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.context.on_root(
            lambda: bool(ckpt.list_checkpoints(self.folder)), f"looking into {self.folder}"
        )

    def claim(self, overwrite: bool) -> None:
        """Make the output folder ready for a new run."""
        self.context.on_root(lambda: self._claim(overwrite), f"preparing {self.output}")

    def _claim(self, overwrite: bool) -> None:
        existing = ckpt.list_checkpoints(self.folder)
        if existing and not overwrite:
            raise ConfigError(
                "holds the checkpoints of an earlier run",
                where=str(self.output),
                remedy="go on with --resume, throw them away with --overwrite, or choose another train.output",
            )
        superseded = self.folder.glob("*.superseded*")
        for path in [
            *existing,
            *superseded,
            self.folder / ckpt.BEST,
            self.output / "metrics.jsonl",
        ]:
            path.unlink(missing_ok=True)
        for path in (self.output / "tensorboard").glob("events.*"):
            path.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        text = msgspec.json.format(msgspec.json.encode(self.config.to_tree()), indent=2)
        (self.output / "config.json").write_bytes(text + b"\n")

    def restore(self, file: Path | None = None) -> tuple[Position, RunState]:
        """Fill model and optimizer from the newest intact checkpoint, or from `file`. The state is for `load_state`."""

        def find() -> ckpt.Checkpoint:
            return ckpt.read(file) if file is not None else ckpt.load_latest(self.folder, self.say)

        saved = ckpt.load_for(self.context, find, "resuming", own=True)
        meta = saved.meta
        self._check(saved)
        self.context.on_root(
            lambda: ckpt.set_aside_later(self.folder, saved.path, meta.step, self.say),
            f"looking into {self.folder}",
        )
        self.strategy.load_values(self.model.ops.to_device(saved.buffers["parameters"]))
        for name, array in self.optimizer.state.items():
            self.strategy.load_shard(saved.buffers[f"optimizer.{name}"], array)
        if self.model.parameters.state.size:
            self.model.parameters.state[...] = self.model.ops.to_device(saved.buffers["state"])
        self.say(f"resuming at step {meta.step} (epoch {meta.epoch + 1}) from {saved.path}")
        self._say_reordered(meta)
        at = Position(meta.step, meta.best_accuracy)
        if "accuracy" in meta.metrics:
            at.last = Evaluation(
                meta.metrics["loss"], meta.metrics["accuracy"], int(meta.metrics["samples"])
            )
            at.evaluated = int(meta.metrics.get("step", meta.step))
        self.saved, self._current = saved.path, (at.step, at.evaluated)
        return at, self._usable(saved)

    def _usable(self, saved: ckpt.Checkpoint) -> RunState:
        """The state without what belongs to another strategy, compressor or number of ranks; says what that is."""
        meta, state, sync = saved.meta, saved.state, self.config.sync
        before = SyncConfig.read(meta.config["sync"], Place(("sync",)))
        if before.strategy != sync.strategy:
            self._say_dropped(
                state.take_section("strategy").names(),
                f"the run had the strategy {before.strategy!r}",
            )
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
                f"note: {', '.join(changed)} changed: in this epoch some samples come twice, and others not at all"
            )

    def _say_dropped(self, names: Iterable[str], why: str) -> None:
        short = dict.fromkeys(name.split(":")[0] for name in names)
        if short:
            self.say(f"not used from the checkpoint: {', '.join(short)} ({why})")

    def state(self) -> RunState:
        """All that a resumed run needs besides the buffers, to go on bit for bit. Before `settle` (see Strategy.state)."""
        state = RunState()
        for name, part in self.stateful.items():
            state.add(name, part.state())
        return state

    def load_state(self, state: RunState) -> None:
        """Go on from what `state` returned, once the strategy has begun."""
        for name, part in self.stateful.items():
            section = state.take_section(name)
            part.load_state(section)
            self._say_dropped(section.names(), "the run has other buckets or settings now")

    def _check(self, saved: ckpt.Checkpoint) -> None:
        meta = saved.meta
        inputs = msgspec.convert(meta.inputs, InputSpec)
        if (
            inputs.class_names is None
        ):  # of a data set with numbers for labels, or of an older checkpoint
            inputs = msgspec.structs.replace(inputs, class_names=self.spec.class_names)
        if meta.parameters != self._layout() or inputs != self.spec:
            raise agreed(
                CheckpointError(
                    "belongs to another model or another kind of data",
                    where=str(saved.path),
                    remedy="resume with the configuration it was made with, or choose another train.output",
                )
            )
        before = meta.config["train"]
        for key in ("global_batch", "seed"):
            if before[key] != getattr(self.config.train, key):
                raise agreed(
                    ConfigError(
                        f"train.{key} is {getattr(self.config.train, key)}, but the run to resume has {before[key]}",
                        where=str(saved.path),
                        remedy="the order of the data depends on it: keep it, or start anew",
                    )
                )
        if self._names() != set(saved.buffers) - {"parameters"}:
            raise agreed(
                ConfigError(
                    f"optim.name is {self.config.optim.name!r}, but the run to resume has {meta.config['optim']['name']!r}",
                    where=str(saved.path),
                    remedy="resume with the optimizer it was made with, or start anew",
                )
            )

    def _layout(self) -> dict[str, tuple[int, list[int]]]:
        return {
            name: (slot.start, list(slot.spec.shape))
            for name, slot in self.model.parameters.slots.items()
        }

    def _names(self) -> set[str]:
        """What a checkpoint holds besides the parameters."""
        state = {"state"} if self.model.parameters.state.size else set()
        return {f"optimizer.{name}" for name in self.optimizer.state} | state

    def _buffers(self) -> dict[str, Array]:
        own = {
            f"optimizer.{name}": self.strategy.gather_full(array)
            for name, array in self.optimizer.state.items()
        }
        state = self.model.parameters.state
        return own | ({"state": state} if state.size else {})

    def save(self, position: Position, steps: int, state: RunState) -> None:
        """Write a checkpoint; steps: of one epoch; state: from before the strategy settled."""
        parameters, step, last = self.model.parameters, position.step, position.last
        values = self.strategy.values()
        broken = parameters.first_nonfinite(values)
        if broken:
            self.context.raise_on_all(
                NumericsError(
                    f"parameter {broken} is not finite after step {step}; it was not saved",
                    remedy="lower optim.lr; go on from the last checkpoint with --resume",
                ),
                "checkpointing",
            )
        fresh = step % steps == 0 and position.evaluated == step
        best = last is not None and fresh and last.accuracy > position.best_accuracy
        if best and last is not None:
            position.best_accuracy = last.accuracy
        meta = ckpt.Meta(
            version=ckpt.VERSION,
            step=step,
            epoch=step // steps,
            epoch_step=step % steps,
            config=self.config.to_tree(),
            inputs=msgspec.to_builtins(self.spec),
            parameters=self._layout(),
            metrics=asdict(last) | {"step": position.evaluated} if last else {},
            best_accuracy=position.best_accuracy,
        )
        every = {"parameters": values} | self._buffers()
        buffers = {name: self.model.ops.to_host(array) for name, array in every.items()}
        self.saved = ckpt.save(
            self.folder,
            meta,
            buffers,
            self.context,
            keep=self.config.checkpoint.keep,
            best=best,
            state=state,
        )
        self._current = (step, position.evaluated)


def _compressor(sync: SyncConfig) -> str:
    """The name of the compressor; "none" also for strategies without."""
    return getattr(getattr(sync.options, "compression", None), "name", "none")


def agreed(error: Any) -> Any:
    """Mark an error that every rank raises by itself."""
    error.agreed = True
    return error
