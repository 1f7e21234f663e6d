"""Batches of a loader, cut into micro-batches and staged on the device: what a step consumes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from mpidl.data import Batch, LaneSampler, Loader
from mpidl.data.manifest import Arrays
from mpidl.train.augmented import AugmentedInputs
from mpidl.train.engine import MicroBatch, StepBatch
from mpidl.train.inputs import Inputs


class Feed:
    """This rank's batches of a run.

    Args:
        loader: Reads them.
        sampler: Says where they are cut.
        inputs: Turns samples into inputs and targets of the model.
        micro_batches: Of all ranks in a step.
        stages_empty: Also give the model micro-batches without samples: its passes wait for the
            other ranks.
        augmented: Changes the samples of each batch; None: they stay what they are.
    """

    def __init__(
        self,
        loader: Loader,
        sampler: LaneSampler,
        inputs: Inputs,
        micro_batches: int,
        *,
        stages_empty: bool,
        augmented: AugmentedInputs | None = None,
    ) -> None:
        self.loader = loader
        self.sampler = sampler
        self.inputs = inputs
        self.micro_batches = micro_batches
        self.stages_empty = stages_empty
        self.augmented = augmented

    @property
    def own_micro_batches(self) -> int:
        """Micro-batches of this rank in a step: one, where the ranks cannot share them evenly."""
        even = self.micro_batches % self.sampler.size == 0
        return self.micro_batches // self.sampler.size if even else 1

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[StepBatch]:
        """The batches of `epoch`, from step `first_step` on."""
        for batch in self.loader.epoch(epoch, first_step):
            yield self._prepare(batch)

    def endless(self, first_step: int, epochs: int) -> Iterator[StepBatch]:
        """Batches without an end, for ranks that take steps asynchronously.

        A fast rank needs more than its share of an epoch: it goes on with orders of the data that
        no epoch of the run has.

        Args:
            first_step: Of the run.
            epochs: Of the run.
        """
        epoch, step = divmod(first_step, self.loader.steps)
        while True:
            for batch in self.loader.epoch(epoch, step):
                if batch.count:
                    yield self._prepare(batch)
            epoch += epochs
            step = 0

    def _prepare(self, batch: Batch) -> StepBatch:
        return StepBatch(self._stage(batch), batch.count, batch.global_count)

    def _stage(self, batch: Batch) -> Iterator[MicroBatch | None]:
        for low, high in pairwise(self.sampler.cuts(batch.step, self.micro_batches)):
            if low == high and not self.stages_empty:
                yield None
            elif self.augmented is not None:
                yield self.augmented.stage(batch, low, high)
            else:
                arrays = self._cut(batch, low, high)
                yield self.inputs.features(arrays), self.inputs.targets(arrays)

    def _cut(self, batch: Batch, low: int, high: int) -> Arrays:
        """The samples [low, high) of this rank's batch, or what of them the epoch trains on."""
        arrays = {name: array[low:high] for name, array in batch.arrays.items()}
        task = self.inputs.task
        if not task.draws:
            return arrays
        return task.draw(
            arrays, batch.samples[low:high], (batch.epoch, batch.step), self.sampler.seed
        )
