"""Rollout: the next frame of a field from the frames before it, for time-dependent equations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from mpidl.backend.plain.pointwise import philox_words
from mpidl.data.manifest import Arrays, Manifest
from mpidl.errors import ConfigError, DataError
from mpidl.nn import Forward, FrameLoss, Loss, LossResult, Model, Unrolled
from mpidl.options import Positive, Section
from mpidl.task.base import Scored, Source, Task
from mpidl.task.classification import is_real
from mpidl.task.metrics import Metric, Sums, ratio
from mpidl.task.spec import FieldSpec, Shape, TargetSpec

STREAM = 0x524F4C4C  # of random numbers
AUTO = -1


class RolloutErrors(Metric):
    """Relative L2 error and RMSE of all predicted frames, and by how far they are ahead.

    The relative error is a mean over samples and frames of |predicted - true| / |true|.

    Args:
        frames: Predicted frames of a sample.
    """

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.size = 2 * frames + 2  # squared and relative errors of each; elements, samples

    def add(self, sums: Sums, scored: Scored) -> None:
        true = scored.targets.reshape(scored.count, self.frames, -1)
        error = scored.outputs.reshape(true.shape) - true
        squares, norms = (error * error).sum(axis=2), (true * true).sum(axis=2)
        sums[: self.frames] += squares.sum(axis=0)
        sums[self.frames : -2] += ratio(np.sqrt(squares), np.sqrt(norms)).sum(axis=0)
        sums[-2:] += scored.count * true.shape[2], scored.count

    def values(self, sums: Sums) -> dict[str, float]:
        rmse, relative = self._by_frame(sums)
        found = {
            "relative_l2": float(relative.mean()),
            "rmse": float(np.sqrt((rmse * rmse).mean())),
        }
        powers = [1 << bit for bit in range(self.frames.bit_length())]
        for ahead in dict.fromkeys((*powers, self.frames)):
            found[f"relative_l2[{ahead}]"] = float(relative[ahead - 1])
        return found

    def details(self, sums: Sums) -> dict[str, Any]:
        rmse, relative = self._by_frame(sums)
        return {"relative_l2_by_frame": relative.tolist(), "rmse_by_frame": rmse.tolist()}

    def _by_frame(self, sums: Sums) -> tuple[Sums, Sums]:
        elements, samples = sums[-2:]
        squares, relative = sums[:-2].reshape(2, self.frames)
        return np.sqrt(squares / elements), relative / samples


class Rollout(Task):
    """The next frame of a trajectory; a trajectory by feeding frames back.

    A sample is one trajectory (t, *space, channels), or (t, *space) with one channel. The model
    takes `history` frames, joined along their channels with the newest at the end, and gives the
    next one. Training takes a window of each trajectory of a batch; its start is drawn.
    Evaluation and prediction start with the first frames of a trajectory and go on to its end.
    Inputs and targets share the normalization of the feature ([data]); metrics and predictions are
    in the units of the data.
    """

    class Options(Section, frozen=True):
        """Options of rollout.

        Attributes:
            history: Frames that the model sees.
            steps: Frames that training predicts one from another; gradients go back through all.
            dimensions: Axes of space in a frame; one more axis holds the channels. -1: all but the
                channels, which fields of four axes or more have, and (t, x) has not. Fields of
                three axes need the setting.
        """

        history: Positive = 1
        steps: Positive = 1
        dimensions: Annotated[int, Meta(ge=AUTO, le=3)] = AUTO

    losses = ("mse", "mae", "huber", "relative_l2")
    best = "relative_l2"
    needs_label = False
    draws = True

    @classmethod
    def describe_targets(cls, options: Any, data: Source) -> TargetSpec:
        where = data.where
        name, field = next(iter(data.features.items()))
        if len(data.features) != 1 or not is_real(field) or len(field.shape) < 2:
            raise DataError(
                f"a rollout takes one field of real numbers, (t, *space, channels), but "
                f"{', '.join(data.features)} is {field.dtype} of shape {field.shape}",
                where=where,
                remedy="name a field of trajectories with data.feature",
            )
        needed = options.history + options.steps
        if field.shape[0] < needed:
            raise ConfigError(
                f"task.history + task.steps is {needed}, but trajectories of {name!r} have "
                f"{field.shape[0]} frames",
                where="task.steps",
                remedy=f"let them add up to at most {field.shape[0]}",
            )
        _frame_shape(field.shape, options.dimensions, name)
        return TargetSpec()

    def check_targets(self, manifest: Manifest, where: str) -> None:
        (own,) = self.spec.features
        if not is_real(manifest.fields[own.name]):
            raise DataError(
                f"the model was trained for real numbers, but {own.name!r} holds "
                f"{manifest.fields[own.name].dtype}",
                where=where,
                remedy="shard the data set again as real numbers",
            )

    @property
    def needs_input_gradient(self) -> bool:
        return bool(self.options.steps > 1)

    @property
    def frame(self) -> Shape:
        """Shape of a frame, (*space, channels)."""
        (own,) = self.spec.features
        return _frame_shape(own.shape, self.options.dimensions, own.name)

    @property
    def ahead(self) -> int:
        """Frames that an evaluation predicts."""
        return int(self.spec.features[0].shape[0] - self.options.history)

    @property
    def input_shape(self) -> Shape:
        *space, channels = self.frame
        return (*space, channels * self.options.history)

    @property
    def output_sizes(self) -> Sequence[int]:
        return [self.frame[-1]]

    def fits(self, output_shape: Shape) -> bool:
        return output_shape == self.frame

    def refuse_model(self, name: str, output_shape: Shape) -> ConfigError:
        return ConfigError(
            f"{name!r} has outputs of shape {output_shape} for a sample, but a rollout gives the "
            f"next frame, {self.frame}",
            where="model",
            remedy="choose a model whose outputs are fields (fno or unet); mlp for vectors",
        )

    def through_steps(self, model: Model) -> Forward:
        return Unrolled(model, self.options.steps, self.options.history)

    def through_samples(self, model: Model) -> Forward:
        return Unrolled(model, self.ahead, self.options.history)

    def loss_of_sample(self, loss: Loss) -> Loss:
        return FrameLoss(loss)

    # --- batches ---
    def draw(
        self, arrays: Arrays, samples: NDArray[np.int64], place: tuple[int, int], seed: int
    ) -> Arrays:
        length = self.options.history + self.options.steps
        name = self.spec.features[0].name
        whole = arrays[name]
        numbers = samples.astype(np.uint64)
        epoch, step = place
        words = philox_words(numbers, numbers >> np.uint64(32), epoch, STREAM + step, seed)[:, 0]
        places = np.uint64(whole.shape[1] - length + 1)
        starts = ((words * places) >> np.uint64(32)).astype(np.int64)
        rows = np.arange(len(whole))[:, None]
        return {name: whole[rows, starts[:, None] + np.arange(length)]}

    def _frames(self, arrays: Arrays) -> NDArray[Any]:
        """(n, t, *space, channels), as stored."""
        stored = arrays[self.spec.features[0].name]
        return stored.reshape(*stored.shape[:2], *self.frame)

    def features(self, arrays: Arrays) -> list[NDArray[Any]]:
        first = self._frames(arrays)[:, : self.options.history]
        joined = np.moveaxis(first, 1, -2).reshape(len(first), *self.input_shape)
        return [np.ascontiguousarray(joined)]

    @property
    def input_fields(self) -> Sequence[FieldSpec]:
        (own,) = self.spec.features
        mean, std = self.scales
        if len(mean) > 1:
            mean, std = (np.tile(numbers, self.options.history) for numbers in (mean, std))
        return [FieldSpec(own.name, self.input_shape, tuple(mean.tolist()), tuple(std.tolist()))]

    @cached_property  # asked for in every batch
    def scales(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each channel."""
        (own,) = self.spec.features
        mean, std, channels = np.array(own.mean), np.array(own.std), self.frame[-1]
        if len(mean) == len(std) == channels:
            return mean, std
        if len(own.shape) < len(self.frame) + 1 and max(len(mean), len(std)) > 1:
            # of each point of the last axis: they have equally many values
            std = np.sqrt(np.mean(std**2) + np.var(mean))[None]
            mean = np.mean(mean)[None]
        return np.resize(mean, channels), np.resize(std, channels)

    def _following(self, arrays: Arrays) -> NDArray[Any]:
        return self._frames(arrays)[:, self.options.history :]

    def targets(self, arrays: Arrays) -> NDArray[Any]:
        mean, std = self.scales
        return ((self._following(arrays) - mean) / std).astype(np.float32)

    # --- results ---
    def make_metrics(self) -> list[Metric]:
        return [RolloutErrors(self.ahead)]

    def _restored(self, outputs: NDArray[Any]) -> NDArray[np.float64]:
        mean, std = self.scales
        return outputs.astype(np.float64) * std + mean

    def scored(self, outputs: NDArray[Any], result: LossResult, arrays: Arrays) -> Scored:
        true = self._following(arrays).astype(np.float64)
        return Scored(self._restored(outputs), true, result, arrays)

    def predictions(self, outputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        stored = self.spec.features[0].shape[1:]
        frames = self._restored(outputs).astype(np.float32)
        return {"value": frames.reshape(*frames.shape[:2], *stored)}


def _frame_shape(shape: Shape, dimensions: int, name: str) -> Shape:
    """(*space, channels) of a field (t, ...).

    Raises:
        ConfigError: The number of axes does not say what they are, or contradicts the setting.
    """
    axes = len(shape) - 1
    if dimensions == AUTO and axes == 2:
        raise ConfigError(
            f"frames of {name!r} of shape {shape[1:]} may be points with channels, or two axes of "
            "space",
            where="task.dimensions",
            remedy="set task.dimensions to 1 or 2",
        )
    space = dimensions if dimensions != AUTO else 1 if axes == 1 else axes - 1
    if axes - space not in (0, 1) or axes == 0:
        raise ConfigError(
            f"task.dimensions is {space}, but frames of {name!r} have the shape {shape[1:]}",
            where="task.dimensions",
            remedy=f"set it to {axes} (one channel) or {axes - 1} (channels on the last axis)",
        )
    return shape[1:] if axes == space + 1 else (*shape[1:], 1)
