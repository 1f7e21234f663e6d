"""The sections of a run configuration; those that choose by name take options from registries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from msgspec import Meta

from mpidl.errors import nearest
from mpidl.models import MODELS
from mpidl.nn import LOSSES
from mpidl.optim import OPTIMIZERS
from mpidl.options import (
    SET,
    Fraction,
    NotNegative,
    NotNegativeNumber,
    OneOf,
    Place,
    Positive,
    Rate,
    Section,
)
from mpidl.registry import Choice, Registry
from mpidl.sync import STRATEGIES
from mpidl.task import AUTO, TaskConfig


class DataConfig(Section, frozen=True):
    """The data sets and how they are read.

    Attributes:
        train: Folder made by `mpidl shard` or `mpidl index`, relative to the working directory; or
            a list of several with the same fields, which are mixed.
        weights: Share of each data set in an epoch, in the order of train; by default by size.
        balance: "classes": each class equally often; "sqrt": by the square root of its samples;
            "none": as the data are. With weights: within each data set.
        epoch_samples: Samples of an epoch; by default as many as there are.
        test: The same, of the test data.
        feature: The field that is the input, or a list of fields that are joined along their
            channels; where there is only one, that.
        label: The field that is the label, or a list of fields of a regression or a multilabel
            task; where there is only one, that.
        layout: What samples (a, b) are: "image", gray with height and width, or "series", steps of
            several channels; "auto": what the model takes. Kept in checkpoints.
        normalize: Which statistics of the data set normalize inputs: of each "channel" (or column
            of a table), of the whole "field", or "auto": of channels for real numbers, of fields
            for bytes.
        mean: Normalization of inputs, (x - mean) / std; by default from the manifest.
        std: See mean.
        shuffle: Draw a new order in every epoch, from (seed, epoch).
        window_bytes: How much of the data set all ranks together hold in memory; smaller data is
            read once and kept.
        driver: "posix": each rank opens the files it needs; "mpio", "mpio-collective": all ranks
            open one shared file together (parallel h5py); "auto": mpio for a shared file, else
            posix.
        verify: Check the SHA-256 of every shard at the start, shards divided among the ranks (1 to
            2 GB/s a rank); of files in place where `mpidl index --checksum` stored one.
    """

    train: str | tuple[str, ...]
    weights: tuple[Annotated[float, Meta(gt=0)], ...] | None = None
    balance: Literal["none", "classes", "sqrt"] = "none"
    epoch_samples: Positive | None = None
    test: str | None = None
    feature: str | tuple[str, ...] | None = None
    label: str | tuple[str, ...] | None = None
    layout: Literal["auto", "image", "series"] = "auto"
    normalize: Literal["auto", "channel", "field"] = "auto"
    mean: float | None = None
    std: Rate | None = None
    shuffle: bool = True
    window_bytes: Positive = 1 << 30
    driver: Literal["auto", "posix", "mpio", "mpio-collective"] = "auto"
    verify: bool = True

    @property
    def folders(self) -> tuple[str, ...]:
        """The training data sets."""
        return (self.train,) if isinstance(self.train, str) else self.train

    def check(self, place: Place) -> None:
        """Refuse lists that do not fit, and draws that need a shuffle."""
        folders = self.folders
        if not folders or len(set(folders)) < len(folders):
            raise place.error(
                "data.train lists no data set, or one twice", "train", remedy="name each once"
            )
        if self.weights is not None and len(self.weights) != len(folders):
            raise place.error(
                f"data.weights has {len(self.weights)} entries for {len(folders)} data set(s) in "
                "data.train",
                "weights",
                remedy="give one weight for each data set",
            )
        drawn = [k for k in ("weights", "epoch_samples") if getattr(self, k) is not None]
        drawn += ["balance"] if self.balance != "none" else []
        if drawn and not self.shuffle:
            raise place.error(
                f"data.{drawn[0]} draws samples in a random order, but data.shuffle is false",
                drawn[0],
                remedy=f"set data.shuffle = true, or remove data.{drawn[0]}",
            )


class ModelConfig(Choice, frozen=True):
    """The model, with its own options in the same section.

    Attributes:
        name: See docs/models.md.
        size: "tiny" or "real": a set of the model's options; those that are given win.
        weights: A safetensors file to start from.
    """

    REGISTRY: ClassVar[Registry[Any]] = MODELS

    name: Annotated[str, OneOf(MODELS)] = "cnn"
    size: str = ""
    weights: str | None = None

    @classmethod
    def read(cls, tree: Mapping[str, Any], place: Place) -> Self:
        """As `Choice.read`, with the options of the size where none are given."""
        name, size = tree.get("name", "cnn"), tree.get("size", "")
        if size and name in MODELS:
            sizes = MODELS[name].sizes
            if size not in sizes:
                what = f"{place.name('size')} is {size!r}: there is no such size of {name!r}"
                raise place.error(what, "size", remedy=nearest(str(size), sizes))
            tree = {**sizes[size], **tree}
        return super().read(tree, place)


class LossConfig(Choice, frozen=True):
    """The loss, with its own options in the same section.

    Attributes:
        name: "auto": the first loss of the task. cross_entropy compares classes, the others real
            values.
    """

    REGISTRY: ClassVar[Registry[Any]] = LOSSES
    NONE: ClassVar[str] = AUTO

    name: Annotated[str, OneOf(LOSSES, AUTO)] = AUTO

    @classmethod
    def _unused(cls, key: str, value: Any, name: str, place: Place, known: set[str]) -> None:
        """An option without the name of its loss is refused: it would have no effect."""
        holders = [one for one in LOSSES if key in LOSSES.options(one).keys()]
        if name != AUTO or not holders:
            super()._unused(key, value, name, place, known)
            return
        what = f"{place.name(key)} is an option of the loss {holders[0]!r}, and none is named"
        raise place.error(what, key, remedy=f'add {place.name("name")} = "{holders[0]}"')


class OptimConfig(Choice, frozen=True):
    """The optimizer, with its own options in the same section, and the learning rate.

    Attributes:
        name: The optimizer.
        lr: The peak learning rate.
        base_batch: The global batch that lr is meant for; with another one the rate is scaled. 0:
            it is not.
        scaling: By the ratio of the batches ("linear": Goyal et al., 2017) or its root ("sqrt":
            for Adam and LAMB).
        clip_norm: Largest norm of all gradients together; 0: no limit.
        schedule: "cosine" (down to `floor` x lr), "step" (x `gamma` at each of `milestones`) or
            "constant".
        warmup_epochs: Linear rise to lr.
        milestones: In epochs, of the step schedule.
        gamma: Of the step schedule.
        floor: Of the cosine schedule.
    """

    REGISTRY: ClassVar[Registry[Any]] = OPTIMIZERS
    NEEDS: ClassVar[dict[str, tuple[str, tuple[Any, ...]]]] = {
        "scaling": ("base_batch", SET),
        "milestones": ("schedule", ("step",)),
        "gamma": ("schedule", ("step",)),
        "floor": ("schedule", ("cosine",)),
    }

    name: Annotated[str, OneOf(OPTIMIZERS)] = "sgd"
    lr: Rate = 0.05
    base_batch: NotNegative = 0
    scaling: Literal["linear", "sqrt"] = "linear"
    clip_norm: NotNegativeNumber = 0.0
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    warmup_epochs: NotNegativeNumber = 0.0
    milestones: tuple[Annotated[float, Meta(gt=0)], ...] = ()
    gamma: Rate = 0.1
    floor: Fraction = 0.0

    def check(self, place: Place) -> None:
        """The step schedule needs milestones."""
        if self.schedule == "step" and not self.milestones:
            what = f"the step schedule needs {place.name('milestones')}"
            raise place.error(what, "schedule", remedy="for example milestones = [3, 5]")

    def peak_rate(self, global_batch: int) -> float:
        """The peak learning rate for a global batch."""
        if not self.base_batch:
            return self.lr
        ratio = global_batch / self.base_batch
        return self.lr * (ratio if self.scaling == "linear" else math.sqrt(ratio))


class TrainConfig(Section, frozen=True):
    """The run.

    Attributes:
        epochs: Number of passes over the training data.
        global_batch: Samples of a step over all ranks, for any number of ranks.
        micro_batches: A power of two. Every number of ranks that is a power of two and divides it
            gives the same bits; with fewer ranks each does several in turn (less memory).
        precision: Of activations and matrix products: 16 bits need a GPU; float16 scales its loss.
            Parameters and gradients stay float32.
        seed: Of the initial parameters and the order of the data.
        output: Folder of the run.
        log_every: Steps between records in metrics.jsonl.
        max_steps: End the run after this many steps; 0: at the end of the epochs.
    """

    epochs: Positive = 1
    global_batch: Positive = 128
    micro_batches: Positive = 4
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    seed: NotNegative = 0
    output: str = "runs/default"
    log_every: Positive = 20
    max_steps: NotNegative = 0

    def check(self, place: Place) -> None:
        """Micro-batches are the leaves of a binary tree, and not more than the samples."""
        count, name = self.micro_batches, place.name("micro_batches")
        if count & (count - 1):
            remedy = "choose a power of two: 1, 2, 4, 8, ..."
            raise place.error(f"{name} is {count}", "micro_batches", remedy=remedy)
        most = max(4, 1 << (self.global_batch - 1).bit_length())
        if count > most:
            raise place.error(
                f"{name} is {count}, but a global batch has {self.global_batch} samples",
                "micro_batches",
                remedy=f"choose at most {most}, or a larger {place.name('global_batch')}",
            )


class SyncConfig(Choice, frozen=True):
    """How the ranks combine their work: the strategy, with its own options in the same section.

    Attributes:
        strategy: See docs/strategies.md.
        watchdog: Seconds until ranks that wait for others end the job and name them; 0: never.
    """

    KEY: ClassVar[str] = "strategy"
    REGISTRY: ClassVar[Registry[Any]] = STRATEGIES

    strategy: Annotated[str, OneOf(STRATEGIES)] = "allreduce"
    watchdog: NotNegativeNumber = 300.0


class CheckpointConfig(Section, frozen=True):
    """When to save.

    Attributes:
        every_steps: Also within epochs; 0: at the end of each only.
        keep: Newest checkpoints to keep, besides the best.
    """

    every_steps: NotNegative = 0
    keep: Positive = 2


class BackendConfig(Section, frozen=True):
    """Where to compute.

    Attributes:
        name: "auto": a GPU where CuPy finds one. MPIDL_BACKEND stands in for "auto".
        graphs: Capture the passes of a step as one CUDA graph; "auto": where no gradients leave
            during backward.
    """

    name: Literal["auto", "numpy", "cupy"] = "auto"
    graphs: Literal["auto", "on", "off"] = "auto"


__all__ = [
    "BackendConfig",
    "CheckpointConfig",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "SyncConfig",
    "TaskConfig",
    "TrainConfig",
]
