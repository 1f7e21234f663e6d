"""Copies of inputs to the device that overlap with computation."""

from __future__ import annotations

from typing import Any

import cupy as cp
import cupyx
import numpy as np
from numpy.typing import NDArray

from mpidl.backend.array import Array


class Staging:
    """Copies through pinned memory on a stream of its own; two buffers a slot take turns.

    A buffer is filled again only after the work that was there when the slot was asked for the
    last time, so the latest launches may still compute.
    """

    def __init__(self) -> None:
        self._slots: dict[str, list[_Slot]] = {}
        self._copies = cp.cuda.Stream(non_blocking=True)
        self._consumed: Any = None

    def send(self, host: NDArray[Any], slot: str) -> Array:
        """The device copy of `host`, ready for work that is launched from now on."""
        main = cp.cuda.get_current_stream()
        turns = self._slots.setdefault(slot, [_Slot(), _Slot()])
        turns.reverse()
        array = turns[0].send(np.ascontiguousarray(host), self._copies, self._consumed)
        main.wait_event(turns[0].arrived)
        self._consumed = main.record()
        return array


class _Slot:
    """One pinned and one device buffer."""

    def __init__(self) -> None:
        self.arrived: Any = None
        self._pinned = np.empty(0, np.uint8)
        self._device: Any = None

    def send(self, host: NDArray[Any], stream: Any, consumed: Any) -> Array:
        """Start to copy `host`, after the event `consumed`; `arrived` is the event of its end."""
        if self.arrived is not None:
            self.arrived.synchronize()  # the pinned buffer is free again
        if self._device is None or self._pinned.nbytes < host.nbytes:
            self._pinned = cupyx.empty_pinned(host.nbytes, np.uint8)
            self._device = cp.empty(host.nbytes, np.uint8)
        pinned = self._pinned[: host.nbytes].view(host.dtype).reshape(host.shape)
        memory: Any = self._device[: host.nbytes].view(host.dtype).reshape(host.shape)
        device: Array = memory
        pinned[...] = host
        if consumed is not None:
            stream.wait_event(consumed)
        memory.set(pinned, stream=stream)
        self.arrived = stream.record()
        return device
