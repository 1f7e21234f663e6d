"""Texts that ranks write for clients, as rank 0 sees them.

The texts of a model are shared among its ranks. A rank that has some is sent one step after the
other, through the scheduler, so that it shares its time with batches by weight; who joins and who
leaves travels with the next step. The texts of a rank that is lost go on where they were on another
one: a token depends on the tokens before it and on (seed, place) alone.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mpidl.serving.batcher import Batcher, Worker
from mpidl.serving.dispatch import TRIES, Dispatcher, ModelLane
from mpidl.serving.errors import ServingError, Unavailable
from mpidl.serving.messages import (
    Buffer,
    Head,
    Kind,
    Start,
    Step,
    Stepped,
    pack_object,
    unpack_object,
)
from mpidl.serving.queue import Pending
from mpidl.serving.settings import ModelSettings
from mpidl.serving.stats import Statistics


@dataclass(eq=False)
class _Text:
    """A text that is being written.

    Attributes:
        start: What the client wants.
        events: New tokens and, at the end, why it ends; or an error.
        lane: Of the rank that writes it.
        lost: How many ranks were lost while they wrote it.
    """

    start: Start
    events: asyncio.Queue[tuple[Sequence[int], str] | ServingError]
    lane: _StepLane | None = None
    lost: int = 0

    def add(self, tokens: Sequence[int], reason: str = "") -> None:
        """Tokens have come."""
        written = (*self.start.written, *tokens)
        self.start = msgspec.structs.replace(self.start, written=written)
        self.events.put_nowait((tokens, reason))


@dataclass(eq=False)
class _StepLane(ModelLane):
    """The way of steps to one rank.

    Attributes:
        texts: Those that it writes, by number.
        fresh: Those that it does not know yet.
        cancelled: Numbers of those that it need not write any more.
        pending: Whether a step waits or is computed.
    """

    texts: dict[int, _Text] = field(default_factory=dict)
    fresh: dict[int, _Text] = field(default_factory=dict)
    cancelled: list[int] = field(default_factory=list)
    pending: bool = False

    def pack(self, number: int, batch: Sequence[Pending]) -> Buffer:
        """See `ModelLane`."""
        step = Step(tuple(text.start for text in self.fresh.values()), tuple(self.cancelled))
        self.texts |= self.fresh
        self.fresh, self.cancelled = {}, []
        return pack_object(Head(Kind.STEP, self.handle, number, rows=1), step)

    def unpack(self, head: Head, body: Buffer, batch: Sequence[Pending]) -> list[Any]:
        """See `ModelLane`."""
        return [(unpack_object(body, Stepped), head.infer)]


class Generation:
    """The texts of one version of a model.

    Args:
        dispatcher: To the ranks.
        handle: Of the version.
        settings: Of the model.
        stats: Of the version.
    """

    def __init__(
        self, dispatcher: Dispatcher, handle: int, settings: ModelSettings, stats: Statistics
    ) -> None:
        self._dispatcher = dispatcher
        self._handle = handle
        self._most = settings.max_queue_size
        self._settings = ModelSettings(path="-", max_batch_size=1, weight=settings.weight)
        self._stats = stats
        self._lanes: list[_StepLane] = []
        self._numbers = itertools.count()

    def add(self, worker: Worker) -> None:
        """A rank has opened the model."""
        lane = _StepLane(self._handle, Batcher(self._settings), [worker])
        self._lanes.append(lane)
        self._dispatcher.scheduler.add(lane)

    def close(self) -> None:
        """The model is dropped: there are no texts any more."""
        for lane in self._lanes:
            self._dispatcher.scheduler.remove(lane)

    @property
    def count(self) -> int:
        """Texts that are being written."""
        return sum(len(lane.texts) + len(lane.fresh) for lane in self._lanes)

    async def write(
        self, start: Start, timeout: float | None = None
    ) -> AsyncGenerator[tuple[Sequence[int], str], None]:
        """The tokens of a text as they come, and at the end why it ends ("" before).

        Args:
            start: What is wanted; its number is set here.
            timeout: Seconds to the first token; None: any.

        Raises:
            ServingError: It cannot be written.
        """
        if self.count >= self._most:
            raise Unavailable(f"{self._most} texts are being written", remedy="try later")
        start = msgspec.structs.replace(start, text=next(self._numbers))
        text = _Text(start, asyncio.Queue())
        self._place(text)
        reason = ""
        try:
            while not reason:
                try:
                    async with asyncio.timeout(timeout):
                        event = await text.events.get()
                except TimeoutError as error:
                    raise Unavailable("Request timeout expired") from error
                if isinstance(event, ServingError):
                    raise event
                tokens, reason = event
                timeout = None
                yield tokens, reason
        finally:
            self._leave(text)

    def _place(self, text: _Text) -> None:
        """Give a text to the rank with fewest."""
        alive = [lane for lane in self._lanes if lane.workers[0].alive]
        if not alive:
            raise Unavailable("all ranks that held the model are lost", remedy="try again later")
        text.lane = min(alive, key=lambda lane: len(lane.texts) + len(lane.fresh))
        text.lane.fresh[text.start.text] = text
        self._go_on(text.lane)

    def _leave(self, text: _Text) -> None:
        """A text has ended, or its client is gone."""
        lane, number = text.lane, text.start.text
        if lane is None:
            return
        lane.fresh.pop(number, None)
        if lane.texts.pop(number, None) is not None:
            lane.cancelled.append(number)
            self._go_on(lane)

    def _go_on(self, lane: _StepLane) -> None:
        """Let a rank take its next step, if there is a reason."""
        wanted = lane.texts or lane.fresh or lane.cancelled
        if lane.pending or not wanted or not lane.workers[0].alive:
            return
        lane.pending = True
        request = Pending((), 1, lambda result: self._take(lane, result))
        self._dispatcher.submit(lane, request)

    def _take(self, lane: _StepLane, result: tuple[Stepped, int] | ServingError) -> None:
        """A step has ended."""
        lane.pending = False
        if isinstance(result, ServingError):
            self._fail(lane, result)
            return
        stepped, nanoseconds = result
        reasons = dict(stepped.ended)
        written = dict(stepped.written)
        for number in {**written, **reasons}:
            text = lane.texts.get(number)
            if text is None:
                continue  # its client has gone meanwhile
            text.add(written.get(number, ()), reasons.get(number, ""))
            if number in reasons:
                del lane.texts[number]
        tokens = sum(len(tokens) for _, tokens in stepped.written)
        self._stats.add_step(stepped.passes, tokens, nanoseconds)
        self._go_on(lane)

    def _fail(self, lane: _StepLane, error: ServingError) -> None:
        """A step has failed, or its rank is lost: its texts go on elsewhere."""
        known, fresh = lane.texts, lane.fresh
        lane.texts, lane.fresh, lane.cancelled = {}, {}, []
        lost = not lane.workers[0].alive
        for text in (*known.values(), *fresh.values()):
            text.lane = None
            text.lost += text.start.text in known
            try:
                if text.start.text in known and (not lost or text.lost >= TRIES):
                    raise error
                self._place(text)
            except ServingError as reason:
                text.events.put_nowait(reason)
