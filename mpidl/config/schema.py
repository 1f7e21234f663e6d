"""The run configuration: a TOML file, checked before anything starts."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mpidl.config.sync import (
    NotNegative,
    Positive,
    Rate,
    Section,
    SyncConfig,
    check_sync,
    name_check,
)
from mpidl.config.tree import check_tree
from mpidl.errors import ConfigError, at_place, os_remedy

Fraction = Annotated[float, Meta(ge=0, le=1)]


class DataConfig(Section, frozen=True):
    """train, test: folders made by `mpidl shard`, relative to the working directory.

    layout: what a field (a, b) is: a gray image (height, width), or a series (steps, channels); "auto": what the model takes.
    """

    train: str
    test: str | None = None
    feature: str | None = None
    label: str | None = None
    layout: Literal["auto", "image", "series"] = "auto"
    mean: float | None = None
    std: Rate | None = None
    shuffle: bool = True
    window_bytes: Positive = 1 << 30
    driver: Literal["auto", "posix", "mpio", "mpio-collective"] = "auto"
    verify: bool = True


class ModelConfig(Section, frozen=True):
    """name: see mpidl.models; options: that model's own keyword arguments, or size = "tiny" or "real".

    weights: a safetensors file to start from (see mpidl.models.weights).
    """

    name: str = "cnn"
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    weights: str | None = None


class OptimConfig(Section, frozen=True):
    """The optimizer and the learning-rate schedule. Times are in epochs.

    momentum, nesterov: of sgd and lars; beta1, beta2, eps: of adam, adamw and lamb; trust: of lars. clip_norm: largest
    norm of all gradients together (0: no limit). base_batch: the batch that lr is meant for; with another global batch the rate
    is scaled by their ratio (linear: Goyal et al., 2017) or its root (sqrt: for Adam and LAMB; 0: not at all).
    """

    name: Literal["sgd", "adam", "adamw", "lars", "lamb"] = "sgd"
    lr: Rate = 0.05
    base_batch: NotNegative = 0
    scaling: Literal["linear", "sqrt"] = "linear"
    momentum: Fraction = 0.9
    nesterov: bool = False
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: Rate = 1e-8
    trust: Rate = 0.001
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    clip_norm: Annotated[float, Meta(ge=0)] = 0.0
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    warmup_epochs: Annotated[float, Meta(ge=0)] = 0.0
    milestones: tuple[Annotated[float, Meta(gt=0)], ...] = ()
    gamma: Rate = 0.1
    floor: Fraction = 0.0


def scaled_rate(optim: OptimConfig, global_batch: int) -> float:
    """The peak learning rate for a global batch."""
    if not optim.base_batch:
        return optim.lr
    ratio = global_batch / optim.base_batch
    return optim.lr * (ratio if optim.scaling == "linear" else math.sqrt(ratio))


class TrainConfig(Section, frozen=True):
    """global_batch: samples per step over all ranks; max_steps: end early (0: never); log_every: steps between metrics.

    precision: of activations and matrix products; 16 bits need a GPU, float16 scales its loss. label_smoothing: share of
    the target that is spread over all classes. micro_batches: a power of two; any number of ranks that divides it gives the
    same bits (see mpidl.train.accumulation).
    """

    epochs: Positive = 1
    global_batch: Positive = 128
    micro_batches: Positive = 4
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    label_smoothing: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    seed: NotNegative = 0
    output: str = "runs/default"
    log_every: Positive = 20
    max_steps: NotNegative = 0


class CheckpointConfig(Section, frozen=True):
    """every_steps: also within epochs (0: only at the end of each); keep: newest checkpoints to keep, besides the best."""

    every_steps: NotNegative = 0
    keep: Positive = 2


class BackendConfig(Section, frozen=True):
    """Where to compute.

    graphs: capture the passes of a step as CUDA graphs; "auto": where gradients do not leave during backward.
    """

    name: Literal["auto", "numpy", "cupy"] = "auto"
    graphs: Literal["auto", "on", "off"] = "auto"


class Config(Section, frozen=True):
    """A whole run."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    sync: SyncConfig = SyncConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    backend: BackendConfig = BackendConfig()


# Settings that work only beside another one: the other setting, and which values of it (WHATEVER: any but 0).
WHATEVER: tuple[Any, ...] = ()
NEEDS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "optim.momentum": ("optim.name", ("sgd", "lars")),
    "optim.nesterov": ("optim.name", ("sgd", "lars")),
    "optim.beta1": ("optim.name", ("adam", "adamw", "lamb")),
    "optim.beta2": ("optim.name", ("adam", "adamw", "lamb")),
    "optim.eps": ("optim.name", ("adam", "adamw", "lamb")),
    "optim.trust": ("optim.name", ("lars",)),
    "optim.scaling": ("optim.base_batch", WHATEVER),
    "optim.milestones": ("optim.schedule", ("step",)),
    "optim.gamma": ("optim.schedule", ("step",)),
    "optim.floor": ("optim.schedule", ("cosine",)),
    "sync.algorithm": ("sync.strategy", ("allreduce",)),
    "sync.overlap": ("sync.strategy", ("allreduce",)),
    "sync.guard": ("sync.strategy", ("allreduce",)),
    "sync.bucket_mib": ("sync.strategy", ("allreduce", "zero")),
    "sync.error_feedback": (
        "sync.compression",
        ("fp16", "bf16", "int8", "sign", "topk", "powersgd"),
    ),
    "sync.topk_ratio": ("sync.compression", ("topk",)),
    "sync.powersgd_rank": ("sync.compression", ("powersgd",)),
}


def load_config(
    path: Path | str,
    overrides: list[str] | None = None,
    *,
    note: Callable[[str], None] = lambda text: None,
) -> Config:
    """Read and check a TOML file, with overrides of the form "section.key=value" applied. Raises ConfigError.

    note: told of settings that have no effect.
    """
    try:
        tree = tomllib.loads(Path(path).read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", where=str(path), remedy=os_remedy(error.errno or 0)
        ) from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # also of text that is no UTF-8, and of numbers with thousands of digits
        raise ConfigError(
            f"is not valid TOML: {error}", where=str(path), remedy="correct that line"
        ) from error
    given = {_override(tree, override): override for override in overrides or []}
    config = build_config(tree, str(path), given)
    for text in ineffective(tree, config):
        note(text)
    return config


def ineffective(tree: dict[str, Any], config: Config) -> list[str]:
    """What of the settings in `tree`, as they were written, has no effect in `config`, and why."""
    found = []
    for name, (other, values) in NEEDS.items():
        value = look_up(config, other)
        if look_up(tree, name) is not None and not (
            value in values or (values == WHATEVER and value)
        ):
            wanted = (
                f"with {other} = {' or '.join(map(repr, values))} only"
                if values
                else f"where {other} is set"
            )
            found.append(f"{name} has no effect: {other} is {value!r}, and it works {wanted}")
    return found


def look_up(place: Any, name: str) -> Any:
    """The value of a setting in a tree or a Config; None where the tree does not have it."""
    for part in name.split("."):
        place = place.get(part) if isinstance(place, dict) else getattr(place, part, None)
    return place


def read_model(name: str, options: list[str]) -> ModelConfig:
    """The model section for a model's name, or of a TOML file, with options of the form "key=value" added."""
    tree: dict[str, Any] = {"model": {"name": name}, "data": {"train": ""}}
    if name.endswith(".toml"):
        tree["model"] = msgspec.to_builtins(load_config(name).model)
    for option in options:
        _override(tree, f"model.options.{option}")
    return build_config(tree, "the command line").model


def build_config(
    tree: dict[str, Any], where: str, overrides: dict[str, str] | None = None
) -> Config:
    """Check a nested dictionary and turn it into a Config. overrides: names of settings from the command line -> their text."""
    given = overrides or {}
    whole = (
        f"{where} with {' '.join(f'--set {text}' for text in given.values())}" if given else where
    )

    def origin(name: str) -> str:
        text = next((text for key, text in given.items() if f"{name}.".startswith(f"{key}.")), None)
        return where if text is None else f"--set {text}"

    name_check(tree.get("sync", {}), origin("sync.strategy"))
    check_tree(tree, Config, origin)
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(
            " in ".join(at_place(error)),
            where=whole,
            remedy="correct it (see docs/configuration.md)",
        ) from error
    if config.train.micro_batches & (config.train.micro_batches - 1):
        raise ConfigError(
            f"train.micro_batches is {config.train.micro_batches}",
            where=origin("train.micro_batches"),
            remedy="choose a power of two: 1, 2, 4, 8, ...",
        )
    most = max(TrainConfig().micro_batches, 1 << (config.train.global_batch - 1).bit_length())
    if config.train.micro_batches > most:
        raise ConfigError(
            f"train.micro_batches is {config.train.micro_batches}, but a global batch has {config.train.global_batch} samples",
            where=origin("train.micro_batches"),
            remedy=f"choose at most {most}, or a larger train.global_batch",
        )
    _check_together(config, tree, whole)
    if config.optim.schedule == "step" and not config.optim.milestones:
        raise ConfigError(
            "the step schedule needs optim.milestones",
            where=whole,
            remedy="for example milestones = [3, 5]",
        )
    return config


def _check_together(config: Config, tree: dict[str, Any], where: str) -> None:
    sync = config.sync
    check_sync(tree.get("sync", {}), sync, where)
    if sync.independent and config.train.precision == "float16":
        raise ConfigError(
            f"float16 needs ranks that agree on a loss scale; with {sync.strategy} they do not meet in a step",
            where=where,
            remedy='set train.precision = "bfloat16"',
        )
    if sync.independent and config.checkpoint.every_steps:
        raise ConfigError(
            f"checkpoint.every_steps needs ranks in step; with {sync.strategy} they meet at the end of each epoch only",
            where=where,
            remedy="set checkpoint.every_steps = 0",
        )
    if sync.independent and config.data.driver == "mpio-collective":
        raise ConfigError(
            f"{sync.strategy} lets ranks read at their own pace, but the driver mpio-collective reads together",
            where=where,
            remedy='set data.driver = "auto"',
        )
    if sync.strategy == "zero" and sync.zero.stage == 3 and config.train.precision != "float32":
        raise ConfigError(
            "stage 3 works in float32 only",
            where=where,
            remedy="set sync.zero.stage = 2, or float32",
        )
    if sync.strategy == "hogwild" and sync.hogwild.sparse:
        optim = config.optim
        if optim.name != "sgd" or optim.momentum or optim.weight_decay:
            raise ConfigError(
                "sparse updates leave alone what has no gradient; momentum, weight decay and other optimizers change it too",
                where=where,
                remedy='set optim.name = "sgd" with momentum = 0 and weight_decay = 0, or hogwild.sparse = false',
            )


def _override(tree: dict[str, Any], text: str) -> str:
    """Write the setting "section.key=value" into the tree; returns its name."""
    key, separator, value = text.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts) or "\n" in value:
        raise ConfigError(
            f"cannot understand {text!r}", where="--set", remedy="write it as section.key=value"
        )
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        parsed = value.strip()  # a bare word is a string
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(
                f"{part!r} is a value, not a section",
                where=f"--set {text}",
                remedy="check the name",
            )
    tree[parts[-1]] = parsed
    return ".".join(parts)
