"""The strategy: reduce-scatter of gradients, all-gather of parameters."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Array
from mpidl.collectives import all_gather, all_reduce, reduce_scatter
from mpidl.comm.context import Context
from mpidl.errors import ConfigError
from mpidl.nn import FlatParameters
from mpidl.options import MebiBytes, Section
from mpidl.sync.strategy import RunInfo, StepScalars
from mpidl.sync.synchronous.buckets import bucket_bytes
from mpidl.sync.synchronous.strategy import SynchronousStrategy, Update
from mpidl.sync.synchronous.zero.layout import ShardLayout
from mpidl.sync.synchronous.zero.storage import PartitionedStorage


class Zero(SynchronousStrategy):
    """State partitioned over the ranks: of the optimizer (1), gradients (2), parameters too (3).

    These are the stages of ZeRO (Rajbhandari et al., 2020). The flat buffer is cut into buckets of
    whole layers, and each bucket into one piece a rank. A rank keeps its pieces of all buckets one
    behind the other: its shard, on which its optimizer works. From stage 2 on gradients of a bucket
    exist only while backward is at its layers; then they are reduce-scattered into the shards. In
    stage 3 so do parameters: a bucket is gathered when a pass comes to its first layer.

    Micro-batches of a rank are added up in its shard, so each is exchanged: use one for each rank
    where the network is slow.

    Attributes:
        layout: The buckets, and this rank's pieces of them.
        storage: The windows, from stage 2 on.
    """

    class Options(Section, frozen=True):
        """Options of zero.

        Attributes:
            stage: 1 partitions optimizer state, 2 gradients too, 3 parameters too.
            bucket_mib: Size of a bucket in MiB; 0: 4 MiB.
        """

        stage: Literal[1, 2, 3] = 2
        bucket_mib: MebiBytes = 0.0

    options: Options
    reduces_micro_batches = True

    @classmethod
    def check(cls, options: Any, run: RunInfo) -> None:
        """Also refuse 16-bit copies of parameters that are gathered layer by layer."""
        super().check(options, run)
        if options.stage == 3 and run.precision != "float32":
            raise ConfigError(
                "stage 3 of zero works in float32 only",
                where="sync.stage",
                remedy='set sync.stage = 2, or train.precision = "float32"',
            )

    @classmethod
    def runs_in_lockstep(cls, options: Any) -> bool:
        """In stage 3 ranks gather parameters in the middle of a pass."""
        return bool(options.stage < 3)

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        options: Section | None = None,
        run: RunInfo | None = None,
    ) -> None:
        super().__init__(parameters, context, options, run)
        nbytes = bucket_bytes(self.options.bucket_mib)
        self.layout = ShardLayout(parameters, nbytes, context.rank, context.size)
        self.shard = parameters.make_shard(self.layout.owned, self._sum_over_shards)
        self.storage: PartitionedStorage | None = None
        if self.options.stage > 1:
            partitioned = self.options.stage > 2
            self.storage = PartitionedStorage(
                parameters, self.layout, values=partitioned, gather=self._gather
            )
            parameters.use(self.storage)
        each = divmod(self.run.micro_batches, context.size)
        self.micro_batches = 1 if each[1] else each[0]  # of this rank in a step
        self._next = len(self.layout.buckets) - 1
        self._done = 0  # micro-batches of the step

    def _sum_over_shards(self, values: NDArray[np.float64]) -> None:
        all_reduce(values, comm=self.group, name="norms")

    def start(self) -> None:
        if self.options.stage < 3:
            super().start()
            self.load_shard(self.parameters.values, self.shard.values)

    # --- a step ---
    def on_gradients_ready(self, start: int, stop: int) -> None:
        """Buckets whose first layer backward has passed leave for their owners."""
        while self._next >= 0 and self.layout.buckets[self._next].start >= start:
            self._scatter(self._next)
            self._next -= 1
        if self._next < 0:  # a micro-batch is complete
            self._next = len(self.layout.buckets) - 1
            self._done += 1

    def _scatter(self, index: int) -> None:
        """Reduce-scatter the gradients of a bucket, and add this rank's piece to its shard."""
        bucket, (low, high) = self.layout.buckets[index], self.layout.placed[index]
        if self.storage is not None:
            whole = self.storage.gradient_window(index)
        else:
            whole = self.parameters.gradients[bucket.start : bucket.stop]
        own = reduce_scatter(whole, comm=self.group, name=bucket.name)
        self.sent += (self.group.size - 1) * whole.nbytes // self.group.size
        if self._done == 0:
            self.shard.gradients[low:high] = own
        else:
            self.shard.gradients[low:high] += own
        if self.storage is not None:
            self.storage.drop_gradients(index)

    def step(self, scalars: StepScalars, update: Update) -> StepScalars:
        while self._done < self.micro_batches:  # this rank has failed: the others wait for it
            self.on_gradients_ready(0, self.parameters.length)
        self._done = 0
        scalars.write(self.parameters)
        all_reduce(self.parameters.spare, comm=self.group, name="scalars")
        sums = StepScalars.read(self.parameters)
        if sums.failed or not np.isfinite(sums.loss):
            return sums
        update()
        if self.storage is None or not self.storage.gathers_in_passes:
            for index, bucket in enumerate(self.layout.buckets):
                self._gather(index, self.parameters.values[bucket.start : bucket.stop])
        else:
            self.storage.drop_values()  # out of date
        return sums

    def _gather(self, index: int, target: Array) -> None:
        """Fill a bucket with this rank's piece of the values, and with those of the others."""
        bucket, (start, stop) = self.layout.buckets[index], self.layout.owned[index]
        low, high = self.layout.placed[index]
        target[start - bucket.start : stop - bucket.start] = self.shard.values[low:high]
        all_gather(target, comm=self.group, name=bucket.name)
        self.sent += (self.group.size - 1) * (high - low) * target.itemsize

    # --- checkpoints ---
    def gather_full(self, array: Array) -> Array:
        full: Array = self.parameters.ops.xp.zeros(self.parameters.length, array.dtype)
        for bucket, (start, stop), (low, high) in zip(
            self.layout.buckets, self.layout.owned, self.layout.placed, strict=True
        ):
            full[start:stop] = array[low:high]
            all_gather(full[bucket.start : bucket.stop], comm=self.group, name="checkpoint")
        return full

    def load_shard(self, whole: Any, array: Array) -> None:
        for (start, stop), (low, high) in zip(self.layout.owned, self.layout.placed, strict=True):
            array[low:high] = self.parameters.ops.to_device(np.ascontiguousarray(whole[start:stop]))

    def values(self) -> Array:
        whole = self.options.stage < 3
        return self.parameters.values if whole else self.gather_full(self.shard.values)

    def load_values(self, whole: Array) -> None:
        if self.options.stage < 3:
            self.parameters.values[...] = whole
        self.load_shard(whole, self.shard.values)

    def initialize(self, seed: int) -> None:
        """In stage 3 bucket by bucket, since no rank has memory for all."""
        if self.storage is None or not self.storage.gathers_in_passes:
            super().initialize(seed)
            return
        for index, bucket in enumerate(self.layout.buckets):
            slots = self.parameters.slots.items()
            names = [name for name, slot in slots if bucket.start <= slot.start < bucket.stop]
            self.parameters.initialize(seed, names)
            (start, stop), (low, high) = self.layout.owned[index], self.layout.placed[index]
            window = self.storage.value_window(index)
            self.shard.values[low:high] = window[start - bucket.start : stop - bucket.start]
            self.storage.drop_values()
        self.parameters.initialize(seed, self.parameters.state_slots)

    def report(self) -> dict[str, Any]:
        item = self.parameters.dtype.itemsize
        own, parameters = self.layout.length, self.parameters
        return super().report() | {
            "shard_bytes": own * item,
            "whole_bytes": parameters.length * item,
            "window_bytes": self.storage.largest * item if self.storage is not None else 0,
            "parameter_bytes": (parameters.values.size + own) * item,
            "gradient_bytes": (parameters.gradients.size + own) * item,
        }
