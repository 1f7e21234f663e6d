"""Handles of asynchronous operations."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from mpidl.collectives import Group
from mpidl.distributed.groups import ProcessGroup


class Handle:
    """An operation that may still be under way; its arrays must be left alone until `wait` returns."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Whether the operation is over (also if it failed)."""
        return self._done.is_set()

    def wait(self) -> Any:
        """Wait for the end; returns what the synchronous form returns, or raises its error."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self, operation: Callable[[], Any]) -> None:
        try:
            self._result = operation()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()


def poll(handle: Handle) -> bool:
    """Whether the operation is over."""
    return handle.done()


def synchronize(handle: Handle) -> Any:
    """Wait for the operation; returns its result."""
    return handle.wait()


def launch(operation: Callable[[Group], Any], group: ProcessGroup, async_op: bool) -> Any:
    """Run now, or in the group's thread and return a Handle; where threads are not allowed it is already done."""
    if not async_op:
        return operation(group.group())
    handle, behind = Handle(), group.behind()
    if behind is None:
        handle._run(lambda: operation(group.group()))
    else:
        behind[1].submit(lambda: handle._run(lambda: operation(behind[0])))
    return handle
