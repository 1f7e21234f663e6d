"""Reads a run configuration: a TOML file, with overrides from the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpidl.augment import AugmentConfig
from mpidl.comm.context import Context
from mpidl.config.sections import (
    BackendConfig,
    CheckpointConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    SyncConfig,
    TaskConfig,
    TrainConfig,
)
from mpidl.errors import ConfigError, os_remedy
from mpidl.options import Place, Section
from mpidl.security.section import SecurityConfig
from mpidl.sync import RunInfo
from mpidl.task import AUTO, check_loss

Note = Callable[[str], None]


class Config(Section, frozen=True):
    """A whole run.

    Attributes:
        data: The data sets.
        model: The model.
        task: What the model is trained for.
        loss: What is minimized.
        optim: The optimizer and the learning rate.
        train: Length, batch, precision, output.
        sync: The strategy.
        checkpoint: When to save.
        backend: Where to compute.
        augment: Random changes of the training samples.
        security: Signatures and audit.
    """

    data: DataConfig
    model: ModelConfig = ModelConfig.read({}, Place())
    task: TaskConfig = TaskConfig.read({}, Place())
    loss: LossConfig = LossConfig.read({}, Place())
    optim: OptimConfig = OptimConfig.read({}, Place())
    train: TrainConfig = TrainConfig()
    sync: SyncConfig = SyncConfig.read({}, Place())
    checkpoint: CheckpointConfig = CheckpointConfig()
    backend: BackendConfig = BackendConfig()
    augment: AugmentConfig = AugmentConfig()
    security: SecurityConfig = SecurityConfig()

    def check(self, place: Place) -> None:
        """Refuse a loss or a strategy that cannot work in this run."""
        try:
            if self.task.name != AUTO:
                check_loss(self.task.name, self.loss.name)
            self.sync.chosen.check(self.sync.options, self.run_info())
        except ConfigError as error:
            setting = error.where
            where = place.origin(setting)
            raise ConfigError(error.what, where=where or setting, remedy=error.remedy) from None

    def run_info(self, **known: Any) -> RunInfo:
        """What strategies may know of the run; `known`: what the configuration does not say."""
        optimizer = self.optim.chosen
        return RunInfo(
            micro_batches=self.train.micro_batches,
            seed=self.train.seed,
            precision=self.train.precision,
            optimizer=self.optim.name,
            per_tensor=optimizer.per_tensor,
            sparse_updates=optimizer.is_sparse(self.optim.options),
            checkpoint_steps=self.checkpoint.every_steps,
            collective_reads=self.data.driver == "mpio-collective",
            **known,
        )


def load_config(
    path: Path | str, overrides: list[str] | None = None, *, note: Note = lambda text: None
) -> Config:
    """Read and check a TOML file.

    Args:
        path: The file.
        overrides: Settings of the form "section.key=value" that win over the file.
        note: Told of settings that have no effect.

    Raises:
        ConfigError: The file cannot be read, or a setting is unknown, missing or impossible.
    """
    try:
        tree = tomllib.loads(Path(path).read_text("utf-8-sig"))
    except OSError as error:
        remedy = os_remedy(error.errno or 0)
        what = f"cannot be read: {error.strerror}"
        raise ConfigError(what, where=str(path), remedy=remedy) from error
    # also for text that is no UTF-8, and for numbers with thousands of digits
    except (ValueError, RecursionError) as error:
        what = f"is not valid TOML: {error}"
        raise ConfigError(what, where=str(path), remedy="correct that line") from error
    given = {override(tree, text): text for text in overrides or []}
    return build_config(tree, str(path), given, note=note)


def load_on_root(
    context: Context, path: Path | str, overrides: list[str], *, note: Note = lambda text: None
) -> Config:
    """`load_config` on rank 0, for all ranks. Collective."""
    tree = context.on_root(
        lambda: load_config(path, overrides, note=note).to_tree(), "reading the configuration"
    )
    return build_config(tree, str(path))


def build_config(
    tree: dict[str, Any],
    where: str,
    overrides: dict[str, str] | None = None,
    *,
    note: Note = lambda text: None,
) -> Config:
    """Check a tree of settings and turn it into a Config.

    Args:
        tree: Sections by name.
        where: Where it comes from, for messages.
        overrides: Settings that come from the command line: name -> their text.
        note: Told of settings that have no effect.
    """
    return Config.read(tree, Place(origin=_origin(where, overrides or {}), note=note))


def read_model(name: str, options: list[str]) -> ModelConfig:
    """The model of a TOML file, or the one called `name`; options: "key=value", of the model."""
    tree: dict[str, Any] = {"model": {"name": name}}
    if name.endswith(".toml"):
        tree = {"model": load_config(name).model.to_tree()}
    given = {override(tree, f"model.{text}"): f"model.{text}" for text in options}
    place = Place(("model",), origin=_origin("the command line", given))
    return ModelConfig.read(tree["model"], place)


def _origin(where: str, overrides: dict[str, str]) -> Callable[[str], str]:
    """Name of a setting -> whether the file or the command line has it."""

    def origin(name: str) -> str:
        for key, text in overrides.items():
            if f"{name}.".startswith(f"{key}."):
                return f"--set {text}"
        return where

    return origin


def override(tree: dict[str, Any], text: str) -> str:
    """Write the setting "section.key=value" into the tree; returns its name."""
    key, separator, value = text.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts) or "\n" in value:
        remedy = "write it as section.key=value"
        raise ConfigError(f"cannot understand {text!r}", where="--set", remedy=remedy)
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        parsed = value.strip()  # a bare word is a string
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            what = f"{part!r} is a value, not a section"
            raise ConfigError(what, where=f"--set {text}", remedy="check the name")
    tree[parts[-1]] = parsed
    return ".".join(parts)
