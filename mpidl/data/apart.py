"""Runs a function in a process of its own: HDF5 may crash on forged files, and ends only that."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

from mpidl import errors
from mpidl.errors import DataError, MpidlError, wrap


def run_apart(function: Callable[[], dict[str, Any]], where: str) -> dict[str, Any]:
    """What `function` returns, called in a child process.

    To be called before the process has threads.

    Args:
        function: Returns what JSON can hold.
        where: What it reads, for messages.

    Raises:
        MpidlError: What `function` raises; or it crashed, or was killed.
    """
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        _answer(function, sender)
    os.close(sender)
    with os.fdopen(receiver, "rb") as stream:
        raw = stream.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise _killed(os.WTERMSIG(status), where)
    if not raw:
        raise DataError("the process that was to read it has failed", where=where)
    answer: dict[str, Any] = json.loads(raw)
    if "error" in answer:
        name, what, place, remedy = answer["error"]
        raise getattr(errors, name, DataError)(what, where=place, remedy=remedy)
    result: dict[str, Any] = answer["result"]
    return result


def _answer(function: Callable[[], dict[str, Any]], sender: int) -> None:
    """Call the function, send what came of it, and end this process."""
    status = 1
    try:
        try:
            answer: dict[str, Any] = {"result": function()}
        except Exception as error:
            if not isinstance(error, (MpidlError, OSError, MemoryError)):
                traceback.print_exc()
            known = wrap(error, "reading data")
            answer = {"error": [type(known).__name__, known.what, known.where, known.remedy]}
        with os.fdopen(sender, "wb") as stream:
            stream.write(json.dumps(answer).encode())
        status = 0
    finally:
        os._exit(status)


def _killed(number: int, where: str) -> DataError:
    if number == signal.SIGKILL:
        return DataError(
            "the process that read it was killed",
            where=where,
            remedy="it may have needed more memory than there is: look at fewer samples",
        )
    return DataError(
        f"HDF5 crashed in reading it ({signal.Signals(number).name}): it is damaged or forged",
        where=where,
        remedy="copy the file again from where it was made, or make it anew",
    )
