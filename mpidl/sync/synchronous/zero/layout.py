"""How the flat buffer is divided: into buckets of whole layers, and those into a piece a rank."""

from __future__ import annotations

from itertools import groupby, pairwise

import numpy as np

from mpidl.collectives.schedule import block_range
from mpidl.nn import FlatParameters
from mpidl.sync.synchronous.buckets import Bucket


class ShardLayout:
    """Which elements of each bucket a rank owns, and where they lie in its shard.

    Args:
        parameters: Of the model.
        nbytes: Of a bucket, at least.
        rank: Of this process.
        size: Ranks that hold shards.

    Attributes:
        buckets: Ascending, and covering the flat buffer.
        owned: Of each bucket, the elements [start, stop) of the flat buffer that this rank owns.
        placed: Of each bucket, where those lie in the shard.
        length: Of the shard.
    """

    def __init__(self, parameters: FlatParameters, nbytes: int, rank: int, size: int) -> None:
        self.buckets = layer_buckets(parameters, nbytes)
        self.owned = [_piece(bucket, rank, size) for bucket in self.buckets]
        edges = np.cumsum([0, *(stop - start for start, stop in self.owned)])
        self.placed = [(int(low), int(high)) for low, high in pairwise(edges)]
        self.length = int(edges[-1])
        self._of_layer = {
            _layer(name): index
            for name, slot in parameters.slots.items()
            for index, bucket in enumerate(self.buckets)
            if bucket.start <= slot.start < bucket.stop
        }

    def bucket_index(self, name: str) -> int | None:
        """The bucket of a layer or parameter; None for a layer without parameters."""
        return self._of_layer.get(_layer(name))


def _piece(bucket: Bucket, rank: int, size: int) -> tuple[int, int]:
    low, high = block_range(rank, size, bucket.stop - bucket.start)
    return bucket.start + low, bucket.start + high


def layer_buckets(parameters: FlatParameters, nbytes: int) -> list[Bucket]:
    """Cut the flat buffer between layers of the model.

    Args:
        parameters: Of the model.
        nbytes: A bucket has as many layers as it takes to reach this size.

    Returns:
        Buckets in ascending order that cover the flat buffer.
    """
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
            name = f"bucket {len(buckets)} ({names[0]} to {names[-1]})"
            buckets.append(Bucket(start, stop, name))
            start = stop
            names = []
    return buckets


def _layer(name: str) -> str:
    """The layer of the model itself that a parameter (or a layer inside it) belongs to."""
    return name.split(".", 1)[0]
