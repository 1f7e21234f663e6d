"""A rank that computes: answers one message after the other."""

from __future__ import annotations

import time
from typing import Any

from mpidl.comm.context import Context
from mpidl.errors import DataError, wrap
from mpidl.serving.messages import (
    Buffer,
    Head,
    Kind,
    Load,
    Step,
    pack,
    pack_object,
    set_head,
    split,
    unpack,
    unpack_object,
)
from mpidl.serving.model import Served, alone


class WorkerRank:
    """The models of a rank.

    Args:
        context: Of the job.
    """

    def __init__(self, context: Context) -> None:
        self._context = alone(context)
        self._models: dict[int, Served] = {}

    def answer(self, message: Buffer) -> Buffer | None:
        """The answer to a message; None: the rank is to end.

        An error becomes an answer: the rank goes on.
        """
        head, body = unpack(message)
        if head.kind == Kind.STOP:
            return None
        done = Head(Kind.DONE, head.handle, head.number, head.rows)
        try:
            if head.kind == Kind.BATCH:
                return self._compute(done, body)
            if head.kind == Kind.STEP:
                return self._step(done, unpack_object(body, Step))
            if head.kind == Kind.LOAD:
                self._models[head.handle] = Served(unpack_object(body, Load), self._context)
                return pack_object(done, self._models[head.handle].about)
            self._models.pop(head.handle, None)
            return pack(done)
        except Exception as error:
            text = str(wrap(error, "serving"))
            return pack_object(done._replace(kind=Kind.FAILED), text[:10_000])

    def _step(self, done: Head, step: Step) -> Buffer:
        start = time.perf_counter_ns()
        texts = self._models[done.handle].texts
        if texts is None:
            raise DataError("the model writes no texts")
        stepped = texts.step(step)
        return pack_object(done._replace(infer=time.perf_counter_ns() - start), stepped)

    def _compute(self, done: Head, body: Any) -> Buffer:
        start = time.perf_counter_ns()
        model = self._models[done.handle]
        inputs = split(body, model.about.inputs, done.rows)
        before = time.perf_counter_ns()
        outputs, nanoseconds = model.run(inputs)
        after = time.perf_counter_ns()
        done = done._replace(input=before - start, infer=nanoseconds)
        answer = pack(done, outputs)
        set_head(answer, done._replace(output=time.perf_counter_ns() - after))
        return answer
