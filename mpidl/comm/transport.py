"""Brings buffers to where MPI can read them: host memory as it is, device memory through pinned host staging."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

_pinned: dict[tuple[int, str], Any] = {}


@contextmanager
def host_view(buffer: Any) -> Iterator[NDArray[Any]]:
    """`buffer` in host memory; for a device array a pinned copy, which is copied back to the device at the end.

    The device stream is synchronised before MPI may read the copy.
    """
    if not hasattr(buffer, "__cuda_array_interface__"):
        yield buffer
        return
    host = _pinned_like(buffer)
    buffer.get(out=host)
    yield host
    buffer.set(host)


def _pinned_like(buffer: Any) -> NDArray[Any]:
    key = (int(buffer.size), str(buffer.dtype))
    if key not in _pinned:
        import cupyx

        _pinned[key] = cupyx.empty_pinned(buffer.shape, buffer.dtype)
    held: NDArray[Any] = _pinned[key]
    return held
