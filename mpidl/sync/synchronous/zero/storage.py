"""Memory of a model whose gradients, and perhaps parameters, exist for one bucket at a time."""

from __future__ import annotations

from collections.abc import Callable

from mpidl.backend import Array
from mpidl.nn import FlatParameters, Storage
from mpidl.nn.parameters import Slot
from mpidl.sync.synchronous.zero.layout import ShardLayout

KEPT = 2  # windows that are not in use, for the next buckets

Windows = dict[int, Array]  # bucket -> memory of at least its length


class PartitionedStorage(Storage):
    """Whole values and gradients of a bucket lie in a window while a pass is at its layers.

    Args:
        parameters: Of the model, whose buffers this replaces.
        layout: The buckets.
        values: Whether values are partitioned too, not only gradients (stage 3).
        gather: Fills a window (bucket length,) with the values of a bucket from the shards of all
            ranks; called in the middle of a pass. Collective.

    Attributes:
        largest: Elements of all windows at once, so far.
    """

    def __init__(
        self,
        parameters: FlatParameters,
        layout: ShardLayout,
        *,
        values: bool,
        gather: Callable[[int, Array], None],
    ) -> None:
        self.xp = parameters.ops.xp
        self.dtype = parameters.dtype
        self.layout = layout
        self.gather = gather
        self.gathers_in_passes = values
        self.message = self.xp.zeros(parameters.spare.size, self.dtype)
        self.gradients = self.message[:0]
        self.values = self.xp.zeros(0, self.dtype) if values else parameters.values
        self.largest = 0
        self._values: Windows = {}
        self._gradients: Windows = {}
        self._free: list[Array] = []

    def value(self, slot: Slot) -> Array:
        """In stage 3 from the window of its bucket, which `enter` has gathered."""
        if not self.gathers_in_passes:
            return slot.view(self.values)
        return self._view(self._values, slot)

    def gradient(self, slot: Slot) -> Array:
        """In the window of its bucket."""
        return self._view(self._gradients, slot)

    def gradient_range(self, start: int, stop: int) -> list[Array]:
        """In the windows of the buckets that backward has come to."""
        found = []
        for index, window in self._gradients.items():
            bucket = self.layout.buckets[index]
            low = max(start, bucket.start) - bucket.start
            high = min(stop, bucket.stop) - bucket.start
            if low < high:
                found.append(window[low:high])
        return found

    def enter(self, layer: str) -> None:
        """In stage 3: gather the bucket of the layer, unless it is there; drop the one before."""
        index = self.layout.bucket_index(layer)
        if not self.gathers_in_passes or index is None or index in self._values:
            return
        self.drop_values()
        self.gather(index, self.value_window(index))

    def value_window(self, index: int) -> Array:
        """The window (bucket length,) for the values of a bucket."""
        return self._window(self._values, index)

    def gradient_window(self, index: int) -> Array:
        """The window (bucket length,) for the gradients of a bucket."""
        return self._window(self._gradients, index)

    def drop_values(self) -> None:
        """Values in windows are out of date or no longer needed."""
        for index in list(self._values):
            self._drop(self._values, index)

    def drop_gradients(self, index: int) -> None:
        """The gradients of a bucket have left."""
        self._drop(self._gradients, index)

    def _view(self, windows: Windows, slot: Slot) -> Array:
        index = self.layout.bucket_index(slot.spec.name)
        assert index is not None
        start = self.layout.buckets[index].start
        window = self._window(windows, index)
        return window[slot.start - start : slot.stop - start].reshape(slot.spec.shape)

    def _window(self, windows: Windows, index: int) -> Array:
        """The window of a bucket; zeroed if it is a new one."""
        bucket = self.layout.buckets[index]
        count = bucket.stop - bucket.start
        if index not in windows:
            fits = [i for i, memory in enumerate(self._free) if memory.size >= count]
            memory = self._free.pop(fits[0]) if fits else self.xp.empty(count, self.dtype)
            memory[:count] = 0
            windows[index] = memory
            held = [*self._values.values(), *self._gradients.values(), *self._free]
            self.largest = max(self.largest, sum(memory.size for memory in held))
        return windows[index][:count]

    def _drop(self, windows: Windows, index: int) -> None:
        if index in windows:
            self._free = [*self._free, windows.pop(index)][-KEPT:]
