"""Starting operations, synchronously or asynchronously."""

from __future__ import annotations

from typing import Any

from mpidl.distributed.channel import Handle, Operation
from mpidl.distributed.groups import ProcessGroup
from mpidl.errors import CollectiveError

__all__ = ["Handle", "launch", "poll", "synchronize"]


def poll(handle: Handle) -> bool:
    """Whether the operation is over."""
    return _handle(handle).done()


def synchronize(handle: Handle) -> Any:
    """Wait for the operation; returns its result."""
    return _handle(handle).wait()


def _handle(handle: Any) -> Handle:
    if not isinstance(handle, Handle):
        raise CollectiveError(
            f"needs a handle, got {type(handle).__name__}",
            remedy="pass what an operation with async_op=True returns",
        )
    return handle


def launch(operation: Operation, group: ProcessGroup, async_op: bool) -> Any:
    """Run an operation now, or hand it to the group's channel.

    Args:
        operation: Called with the group that it communicates in.
        group: The ranks.
        async_op: Return a Handle at once; where MPI does not allow threads it is already done.
    """
    return group.async_channel().submit(operation) if async_op else operation(group.group())
