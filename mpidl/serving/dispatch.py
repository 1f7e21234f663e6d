"""The ranks that compute, as the event loop of rank 0 sees them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from mpidl.errors import MpidlError, notice
from mpidl.serving.batcher import Lane, Scheduler, Worker
from mpidl.serving.errors import ServingError, Unavailable
from mpidl.serving.link import Link
from mpidl.serving.messages import Buffer, Head, Kind, pack_batch, split, unpack, unpack_object
from mpidl.serving.queue import Pending
from mpidl.serving.settings import ServerSettings
from mpidl.serving.stats import Statistics
from mpidl.serving.tensors import TensorSpec

TRIES = 2  # ranks that may be lost while they compute a request: it may be the reason
CHECK = 1.0  # seconds between looks at ranks that do not answer


@dataclass(eq=False)
class ModelLane(Lane):
    """A lane with what its answers look like.

    Attributes:
        outputs: Of the model.
        stats: Of this version of the model.
    """

    outputs: Sequence[TensorSpec] = ()
    stats: Statistics | None = None

    def pack(self, number: int, batch: Sequence[Pending]) -> Buffer:
        """The message with a batch.

        Args:
            number: Of the message.
            batch: Its requests.
        """
        columns = list(zip(*(request.inputs for request in batch), strict=True))
        return pack_batch(self.handle, number, columns)

    def unpack(self, head: Head, body: Buffer, batch: Sequence[Pending]) -> list[Any]:
        """What each request of a batch gets.

        Args:
            head: Of the answer.
            body: Of the answer.
            batch: Its requests.

        Raises:
            MpidlError: The answer is not what a rank sends.
        """
        rows = sum(request.rows for request in batch)
        outputs: list[NDArray[Any]] = split(body, self.outputs, rows)
        if self.stats is not None:
            waited = [request.started - request.queued for request in batch]
            self.stats.add_batch(rows, waited, (head.input, head.infer, head.output))
        ends = itertools.accumulate(request.rows for request in batch)
        return [
            [array[end - request.rows : end] for array in outputs]
            for request, end in zip(batch, ends, strict=True)
        ]


@dataclass(eq=False)
class _Flight:
    """A message that was sent: a batch, or a call."""

    worker: Worker
    lane: ModelLane | None = None
    batch: Sequence[Pending] = ()
    reply: asyncio.Future[Buffer] | None = None


class Dispatcher:
    """Sends batches to ranks. For the event loop, in which it is made.

    Args:
        settings: Of the server.
        link: To the ranks.
    """

    def __init__(self, settings: ServerSettings, link: Link) -> None:
        self.settings = settings
        self.link = link
        self.workers = [Worker(rank) for rank in link.ranks]
        self.scheduler = Scheduler(settings.in_flight)
        self._by_rank = {worker.rank: worker for worker in self.workers}
        self._flights: dict[int, _Flight] = {}
        self._numbers = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self.on_idle: list[Callable[[], None]] = []
        self.on_lost: list[Callable[[], None]] = []
        link.start(
            lambda rank, message: self._in_loop(self._take, rank, message),
            lambda rank: self._in_loop(self.lose, rank),
        )
        self._checker = self._loop.call_later(CHECK, self._check)

    def _in_loop(self, function: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            return  # the loop has ended: nobody waits for this any more

    # --- requests ---
    def submit(self, lane: ModelLane, request: Pending) -> None:
        """Let a request wait for its batch.

        Raises:
            Unavailable: The queue is full, or no rank has the model.
        """
        if not any(worker.alive for worker in lane.workers):
            raise Unavailable("all ranks that held the model are lost", remedy="try again later")
        self.scheduler.wake(lane)
        lane.batcher.queue.push(request, time.monotonic_ns())
        self.pump_soon()

    def cancel(self, lane: ModelLane, request: Pending) -> None:
        """Forget a request whose client is gone."""
        lane.batcher.queue.remove(request)
        if lane.stats is not None:
            lane.stats.cancel += 1
        self.tell_idle()

    def pump_soon(self) -> None:
        """Look for batches at the end of this turn of the loop: what has come is in them."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        now = time.monotonic_ns()
        for lane in self.scheduler.lanes:
            for request in lane.batcher.queue.expire(now):
                request.finish(Unavailable("Request timeout expired"))
        for lane, worker, batch in self.scheduler.dispatch(now):
            assert isinstance(lane, ModelLane)
            self._send_batch(lane, worker, batch, now)
        self._set_timer(now)

    def _send_batch(
        self, lane: ModelLane, worker: Worker, batch: Sequence[Pending], now: int
    ) -> None:
        number = next(self._numbers)
        for request in batch:
            request.started = now
        lane.flying += 1
        self._launch(number, _Flight(worker, lane, batch), lane.pack(number, batch))

    def _launch(self, number: int, flight: _Flight, message: Buffer) -> None:
        if not flight.worker.flying:
            flight.worker.since = time.monotonic_ns()
        flight.worker.flying.add(number)
        self._flights[number] = flight
        self.link.send(flight.worker.rank, message)

    def _set_timer(self, now: int) -> None:
        at = self.scheduler.next_time(now)
        if at is None or (self._timer is not None and self._timer_at == at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later((at - now) * 1e-9, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.pump_soon()

    # --- calls ---
    async def call(self, worker: Worker, make: Callable[[int], Buffer]) -> Buffer:
        """Send a message other than a batch.

        Args:
            worker: The rank.
            make: Makes the message from its number.

        Returns:
            The body of the answer.

        Raises:
            ServingError: The rank could not do it, or is lost.
        """
        if not worker.alive:
            raise Unavailable(f"rank {worker.rank} is lost")
        number = next(self._numbers)
        reply: asyncio.Future[Buffer] = self._loop.create_future()
        self._launch(number, _Flight(worker, reply=reply), make(number))
        return await reply

    # --- answers ---
    def _take(self, rank: int, message: Buffer) -> None:
        try:
            head, body = unpack(message)
        except MpidlError as broken:
            notice(f"{broken}", f"error on rank {rank}")
            self.lose(rank)
            return
        flight = self._flights.pop(head.number, None)
        if flight is None:
            return
        flight.worker.flying.discard(head.number)
        flight.worker.since = time.monotonic_ns()
        error = ServingError(unpack_object(body, str)) if head.kind == Kind.FAILED else None
        if flight.reply is not None:
            if flight.reply.cancelled():
                return
            if error is None:
                flight.reply.set_result(body)
            else:
                flight.reply.set_exception(error)
        else:
            self._finish_batch(flight, head, body, error)
        self.pump_soon()

    def _finish_batch(
        self, flight: _Flight, head: Head, body: Buffer, error: ServingError | None
    ) -> None:
        lane = flight.lane
        assert lane is not None
        lane.flying -= 1
        results: list[Any] = []
        if error is None:
            try:
                results = lane.unpack(head, body, flight.batch)
            except MpidlError as broken:
                error = ServingError(broken.what)
            else:
                rows = sum(request.rows for request in flight.batch)
                self.scheduler.learn(lane, rows, head.input + head.infer + head.output)
        for index, request in enumerate(flight.batch):
            request.finish(error or results[index])
        self.tell_idle()

    def tell_idle(self) -> None:
        """Some requests are there no more."""
        for function in list(self.on_idle):
            function()

    # --- ranks that are lost ---
    def lose(self, rank: int) -> None:
        """A rank is gone: what it computed goes to another one."""
        worker = self._by_rank[rank]
        if not worker.alive:
            return
        worker.alive = False
        self.link.forget(rank)
        notice(f"rank {rank} is lost; the server goes on with the others", "error")
        for number in sorted(worker.flying, reverse=True):
            self._return(self._flights.pop(number))
        worker.flying.clear()
        for lane in self.scheduler.lanes:
            if not any(other.alive for other in lane.workers):
                lane.batcher.queue.clear(Unavailable("all ranks that held the model are lost"))
        for function in self.on_lost:
            function()
        self.tell_idle()
        self.pump_soon()

    def _return(self, flight: _Flight) -> None:
        error = Unavailable(f"rank {flight.worker.rank} was lost while it computed this")
        if flight.reply is not None and not flight.reply.done():
            flight.reply.set_exception(error)
        if flight.lane is None:
            return
        flight.lane.flying -= 1
        again = []
        for request in flight.batch:
            request.lost += 1
            if request.lost < TRIES:
                again.append(request)
            else:
                request.finish(error)
        flight.lane.batcher.queue.give_back(again, time.monotonic_ns())

    def _check(self) -> None:
        """Count ranks as lost that have not answered for too long."""
        limit = time.monotonic_ns() - int(self.settings.worker_timeout * 1e9)
        for worker in self.workers:
            if worker.alive and worker.flying and worker.since < limit:
                self.lose(worker.rank)
        self._checker = self._loop.call_later(CHECK, self._check)

    def close(self) -> None:
        """Let the ranks end."""
        self._checker.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self.link.close()
