"""State partitioned over the ranks: of the optimizer (1), gradients too (2), parameters too (3) (Rajbhandari et al., 2020).

The flat buffer is cut into buckets of whole layers, and each bucket into one piece a rank. A rank keeps its pieces of all
buckets side by side: its part, on which its optimizer works. Gradients of a bucket exist only while backward is at its
layers; then they are reduce-scattered into the parts. In stage 3 so do parameters: a bucket is gathered when a pass comes to
its first layer.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import Array
from mpidl.collectives import Group, all_gather, all_reduce, broadcast, reduce_scatter
from mpidl.collectives.schedule import part
from mpidl.comm.context import Context
from mpidl.errors import ConfigError
from mpidl.nn import FlatParameters, FlatPart
from mpidl.nn.parameters import Slot
from mpidl.options import MebiBytes, Section
from mpidl.sync.strategy import RunInfo, StepScalars
from mpidl.sync.synchronous.buckets import Bucket
from mpidl.sync.synchronous.strategy import SynchronousStrategy, Update

BUCKET = 4 << 20  # bytes


class ShardLayout:
    """Which elements of each bucket a rank owns, and where they lie in its part."""

    def __init__(self, buckets: list[Bucket], rank: int, size: int) -> None:
        self.buckets = buckets
        self.owned = [_piece(bucket, rank, size) for bucket in buckets]
        edges = np.cumsum([0, *(stop - start for start, stop in self.owned)])
        self.placed = [(int(low), int(high)) for low, high in pairwise(edges)]
        self.length = int(edges[-1])

    def slots(self, parameters: FlatParameters) -> dict[str, Slot]:
        """Every tensor as the range of the part that holds some of it."""
        found = {}
        for (start, stop), (low, _), bucket in zip(
            self.owned, self.placed, self.buckets, strict=True
        ):
            for name, slot in parameters.slots.items():
                if bucket.start <= slot.start and slot.stop <= bucket.stop:
                    first, last = (min(max(edge, start), stop) for edge in (slot.start, slot.stop))
                    found[name] = replace(slot, start=low + first - start, stop=low + last - start)
        return {name: found[name] for name in parameters.slots}


def _piece(bucket: Bucket, rank: int, size: int) -> tuple[int, int]:
    low, high = part(rank, size, bucket.stop - bucket.start)
    return bucket.start + low, bucket.start + high


def layer_buckets(parameters: FlatParameters, nbytes: int) -> list[Bucket]:
    """Whole layers of the model together until they have `nbytes`; ascending, and covering the flat buffer."""
    buckets: list[Bucket] = []
    names: list[str] = []
    start = 0
    layers = [
        (layer, list(slots))
        for layer, slots in groupby(parameters.slots.values(), lambda slot: _layer(slot.spec.name))
    ]
    for index, (layer, slots) in enumerate(layers):
        names.append(layer)
        last = index + 1 == len(layers)
        stop = parameters.length if last else layers[index + 1][1][0].start
        if last or (slots[-1].stop - start) * parameters.dtype.itemsize >= nbytes:
            buckets.append(
                Bucket(start, stop, f"bucket {len(buckets)} ({names[0]} to {names[-1]})")
            )
            start, names = stop, []
    return buckets


def _layer(name: str) -> str:
    return name.split(".", 1)[0]


class Zero(SynchronousStrategy):
    """stage: 1, 2 or 3, see above. bucket_bytes: 0 means 4 MiB. micro_batches: of each rank in a step.

    Micro-batches of a rank are added up in its part, so each is exchanged: use one for each rank where the network is slow.
    """

    class Options(Section, frozen=True):
        """Options of zero.

        Attributes:
            stage: 1 partitions optimizer state, 2 gradients too, 3 parameters too.
            bucket_mib: Size of a bucket in MiB; 0: 4 MiB.
        """

        stage: Literal[1, 2, 3] = 2
        bucket_mib: MebiBytes = 0.0

    reduces_micro_batches = True

    @classmethod
    def create(
        cls, options: Options, parameters: FlatParameters, context: Context, run: RunInfo
    ) -> Zero:
        """The strategy with `options`. Collective."""
        fits = run.micro_batches % context.size == 0
        return cls(
            parameters,
            context,
            stage=options.stage,
            bucket_bytes=int(options.bucket_mib * (1 << 20)),
            micro_batches=run.micro_batches // context.size if fits else 1,
        )

    @classmethod
    def check(cls, options: Options, run: RunInfo) -> None:
        """Also refuse 16-bit copies of parameters that are gathered layer by layer."""
        super().check(options, run)
        if options.stage == 3 and run.precision != "float32":
            raise ConfigError(
                "stage 3 of zero works in float32 only",
                where="sync.stage",
                remedy='set sync.stage = 2, or train.precision = "float32"',
            )

    @classmethod
    def runs_in_lockstep(cls, options: Options) -> bool:
        """In stage 3 ranks gather parameters in the middle of a pass."""
        return options.stage < 3

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        *,
        stage: int = 2,
        bucket_bytes: int = 0,
        micro_batches: int = 1,
    ) -> None:
        super().__init__(parameters)
        self.context, self.stage = context, stage
        self.group = Group(context.comm, name="gradients")
        buckets = layer_buckets(parameters, bucket_bytes or BUCKET)
        self.pieces = ShardLayout(buckets, context.rank, context.size)
        self.micro_batches, self._next, self._done = micro_batches, len(buckets) - 1, 0
        self._layers = {
            _layer(name): index
            for name, slot in parameters.slots.items()
            for index, bucket in enumerate(buckets)
            if bucket.start <= slot.start < bucket.stop
        }
        self._gradients: dict[int, Array] = {}  # windows by bucket
        self._values: dict[int, Array] = {}
        self._free: list[Array] = []
        xp, dtype = parameters.ops.xp, parameters.dtype
        values, gradients = (xp.zeros(self.pieces.length, dtype) for _ in range(2))
        self.shard = FlatPart(
            parameters.ops, dtype, values, gradients, self.pieces.slots(parameters), self._reduce
        )
        if stage > 1:  # the buffer shrinks to the scalars behind it
            parameters.message = xp.zeros(len(parameters.spare), dtype)
            parameters.gradients, parameters.spare = parameters.message[:0], parameters.message
        if stage > 2:
            parameters.values = xp.zeros(0, dtype)
        parameters.windows = self
        self.largest = 0  # elements of all windows at once, so far

    def _reduce(self, values: NDArray[np.float64]) -> None:
        all_reduce(values, comm=self.group, name="norms")

    # --- windows ---
    def _bucket_of(self, slot: Slot) -> int:
        return self._layers[_layer(slot.spec.name)]

    def _window(self, held: dict[int, Array], index: int) -> Array:
        """The window of a bucket, zeroed if it is a new one."""
        if index not in held:
            bucket = self.pieces.buckets[index]
            count, xp = bucket.stop - bucket.start, self.parameters.ops.xp
            fitting = next((i for i, array in enumerate(self._free) if array.size >= count), None)
            memory = (
                xp.empty(count, self.parameters.dtype)
                if fitting is None
                else self._free.pop(fitting)
            )
            held[index] = memory
            held[index][:count] = 0
            live = sum(
                array.size
                for windows in (self._gradients, self._values)
                for array in windows.values()
            )
            self.largest = max(self.largest, live + sum(array.size for array in self._free))
        return held[index]

    def _slice(self, held: dict[int, Array], index: int, slot: Slot) -> Array:
        start = self.pieces.buckets[index].start
        return self._window(held, index)[slot.start - start : slot.stop - start]

    def _drop(self, held: dict[int, Array], index: int) -> None:
        if index in held:
            self._free = [*self._free, held.pop(index)][-2:]

    def value(self, slot: Slot) -> Array | None:
        """Stage 3: from the window of its bucket, which `enter` has gathered."""
        return self._slice(self._values, self._bucket_of(slot), slot) if self.stage > 2 else None

    def gradient(self, slot: Slot) -> Array | None:
        """From stage 2 on: in the window of its bucket."""
        return self._slice(self._gradients, self._bucket_of(slot), slot) if self.stage > 1 else None

    @property
    def gathers_in_passes(self) -> bool:
        return self.stage > 2

    def gradient_range(self, start: int, stop: int) -> list[Array]:
        if self.stage < 2:
            return [self.parameters.gradients[start:stop]]
        found = []
        for index in self._gradients:
            bucket = self.pieces.buckets[index]
            low, high = (
                max(start, bucket.start) - bucket.start,
                min(stop, bucket.stop) - bucket.start,
            )
            if low < high:
                found.append(self._gradients[index][low:high])
        return found

    def enter(self, layer: str) -> None:
        """Stage 3: gather the bucket of the layer, unless it is here; the one before is no longer needed."""
        index = self._layers.get(layer)
        if self.stage < 3 or index is None or index in self._values:
            return
        for other in list(self._values):
            self._drop(self._values, other)
        self._gather(index, self._window(self._values, index))

    def _gather(self, index: int, target: Array) -> None:
        """Own piece from the part into its place in a bucket, and those of the others."""
        bucket, (start, stop), (low, high) = (
            self.pieces.buckets[index],
            self.pieces.owned[index],
            self.pieces.placed[index],
        )
        count = bucket.stop - bucket.start
        target[start - bucket.start : stop - bucket.start] = self.shard.values[low:high]
        all_gather(target[:count], comm=self.group, name=bucket.name)
        self.sent += (self.group.size - 1) * (high - low) * target.itemsize

    # --- a step ---
    def start(self) -> None:
        if self.stage < 3:
            broadcast(self.parameters.values, comm=self.group, name="parameters")
            self.load_shard(self.parameters.values, self.shard.values)

    def load_values(self, whole: Array) -> None:
        if self.stage < 3:
            self.parameters.values[...] = whole
        self.load_shard(whole, self.shard.values)

    def on_gradients_ready(self, start: int, stop: int) -> None:
        """Buckets whose first layer backward has passed leave for their owners."""
        while self._next >= 0 and self.pieces.buckets[self._next].start >= start:
            self._scatter(self._next)
            self._next -= 1
        if self._next < 0:  # a micro-batch is complete
            self._next, self._done = len(self.pieces.buckets) - 1, self._done + 1

    def _scatter(self, index: int) -> None:
        bucket, (low, high) = self.pieces.buckets[index], self.pieces.placed[index]
        if self.stage > 1:
            whole = self._window(self._gradients, index)[: bucket.stop - bucket.start]
        else:
            whole = self.parameters.gradients[bucket.start : bucket.stop]
        mine = reduce_scatter(whole, comm=self.group, name=bucket.name)
        self.sent += (self.group.size - 1) * whole.nbytes // self.group.size
        if self._done == 0:
            self.shard.gradients[low:high] = mine
        else:
            self.shard.gradients[low:high] += mine
        self._drop(self._gradients, index)

    def step(self, scalars: StepScalars, update: Update) -> StepScalars:
        while self._done < self.micro_batches:  # this rank has failed: the others wait for its part
            self.on_gradients_ready(0, self.parameters.length)
        self._done = 0
        scalars.write(self.parameters)
        all_reduce(self.parameters.spare, comm=self.group, name="scalars")
        sums = StepScalars.read(self.parameters)
        if sums.failed or not np.isfinite(sums.loss):
            return sums
        update()
        if self.stage < 3:
            for index, bucket in enumerate(self.pieces.buckets):
                self._gather(index, self.parameters.values[bucket.start : bucket.stop])
        self._values.clear()  # what is here is old
        return sums

    # --- checkpoints ---
    def gather_full(self, array: Array) -> Array:
        full = self.parameters.ops.xp.zeros(self.parameters.length, array.dtype)
        for bucket, (start, stop), (low, high) in zip(
            self.pieces.buckets, self.pieces.owned, self.pieces.placed, strict=True
        ):
            full[start:stop] = array[low:high]
            all_gather(full[bucket.start : bucket.stop], comm=self.group, name="checkpoint")
        return full

    def load_shard(self, whole: Any, array: Array) -> None:
        for (start, stop), (low, high) in zip(self.pieces.owned, self.pieces.placed, strict=True):
            array[low:high] = self.parameters.ops.to_device(np.ascontiguousarray(whole[start:stop]))

    def values(self) -> Array:
        return self.gather_full(self.shard.values) if self.stage > 2 else self.parameters.values

    def initialize(self, seed: int) -> None:
        if self.stage < 3:
            super().initialize(seed)
            return
        for index, bucket in enumerate(self.pieces.buckets):
            window = self._window(self._values, index)
            for name, slot in self.parameters.slots.items():
                if bucket.start <= slot.start < bucket.stop:
                    self.parameters.value(name)[...] = self.parameters.ops.to_device(
                        self.parameters.initial(name, seed)
                    )
            (start, stop), (low, high) = self.pieces.owned[index], self.pieces.placed[index]
            self.shard.values[low:high] = window[start - bucket.start : stop - bucket.start]
            self._drop(self._values, index)
        for name in self.parameters.state_slots:
            self.parameters.value(name)[...] = self.parameters.ops.to_device(
                self.parameters.initial(name, seed)
            )

    def report(self) -> dict[str, Any]:
        item = self.parameters.dtype.itemsize
        held = self.parameters.length if self.stage < 3 else 0
        return super().report() | {
            "part_bytes": self.pieces.length * item,
            "whole_bytes": self.parameters.length * item,
            "window_bytes": self.largest * item,
            "parameter_bytes": (held + self.pieces.length) * item,
            "gradient_bytes": (
                self.pieces.length + (0 if self.stage > 1 else self.parameters.length)
            )
            * item,
        }
