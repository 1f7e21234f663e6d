"""Parameter servers: some ranks hold the parameters, the others compute gradients (Dean et al., 2012; Li et al., 2014).

The flat buffer is divided among the servers. A worker sends its gradient to all of them, and gets the parameters back when the
rules of `mpidl.sync.asynchronous.clocks` let it go on: with staleness 0 all gradients of a round are averaged and used once, else each is
used when it comes, at the rate divided by the number of workers. A gradient that comes late can be corrected for how far the
parameters have moved meanwhile (DC-ASGD: Zheng et al., 2017).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from mpidl.collectives import broadcast
from mpidl.collectives.schedule import part
from mpidl.comm import mpi
from mpidl.comm.context import Context
from mpidl.comm.transport import host_view
from mpidl.errors import ConfigError
from mpidl.nn import FlatParameters, FlatPart
from mpidl.options import NotNegative, NotNegativeNumber, Positive, Section
from mpidl.sync.asynchronous.clocks import Clocks
from mpidl.sync.asynchronous.strategy import AsynchronousStrategy, Update
from mpidl.sync.strategy import RunInfo, StepScalars

PUSH, ASK, DONE, LEAVE = range(4)  # what a worker says
KIND, NUMBER, RATE = range(3)  # fields of the head of its message
TICKET = 0  # in the head of the answer
HEAD = 4  # float64 numbers: exact for counts up to 2^53


def check_servers(servers: int, size: int) -> None:
    """ConfigError unless a worker is left."""
    if servers >= size:
        raise ConfigError(
            f"{servers} parameter server(s) among {size} rank(s) leave no worker",
            where="sync.servers",
            remedy=f"set servers to at most {size - 1}" if size > 1 else "start 2 ranks or more",
        )


class ServerOptions(Section, frozen=True):
    """Options of parameter servers.

    Attributes:
        servers: How many ranks only hold parameters: the last ones.
        staleness: Steps that a worker may be ahead of the slowest.
    """

    servers: Positive = 1
    staleness: NotNegative | Literal["unbounded"] = "unbounded"

    @property
    def bound(self) -> int | None:
        """The staleness; None: any number of steps."""
        return None if isinstance(self.staleness, str) else self.staleness


class ParameterServer(AsynchronousStrategy):
    """servers: the last ranks. staleness: steps that a worker may be ahead; None: any number.

    On a server `part` is its share of the parameters, with the optimizer's state; on a worker it is empty.
    """

    class Options(ServerOptions, frozen=True):
        """Options of parameter_server.

        Attributes:
            servers: How many ranks only hold parameters: the last ones.
            staleness: Steps that a worker may be ahead of the slowest: 0 synchronous,
                "unbounded" asynchronous.
            delay_compensation: Of gradients that come late (DC-ASGD).
        """

        delay_compensation: NotNegativeNumber = 0.0

    @classmethod
    def create(
        cls, options: Options, parameters: FlatParameters, context: Context, run: RunInfo
    ) -> ParameterServer:
        """The strategy with `options`. Collective."""
        return cls(
            parameters,
            context,
            servers=options.servers,
            staleness=options.bound,
            delay_compensation=options.delay_compensation,
        )

    @classmethod
    def training_ranks(cls, options: Options, ranks: int) -> int:
        """All but the servers."""
        return ranks - options.servers

    @classmethod
    def check(cls, options: Options, run: RunInfo) -> None:
        """Also refuse servers that leave no worker."""
        super().check(options, run)
        if run.ranks:
            check_servers(options.servers, run.ranks)
        if options.servers > 1 and run.per_tensor:
            raise ConfigError(
                f"{run.optimizer} looks at whole tensors, but several servers hold parts of them",
                where="sync.servers",
                remedy='set servers = 1, strategy = "one_sided_server", or another optimizer',
            )

    host_only = False

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        *,
        servers: int = 1,
        staleness: int | None = None,
        delay_compensation: float = 0.0,
    ) -> None:
        check_servers(servers, context.size)
        super().__init__(parameters, context, context.size - servers, "parameter servers")
        self.delay_compensation = delay_compensation
        self.serves = context.rank >= self.workers
        self.ranges = [part(index, servers, parameters.length) for index in range(servers)]
        own = self.ranges[context.rank - self.workers] if self.serves else (0, 0)
        self.shard = share_of(parameters, *own)
        self.clocks, self.version, self._numbers = Clocks(staleness), 0, 0
        self._pulled: dict[
            int, tuple[int, Any]
        ] = {}  # version and, for compensation, parameters that each worker has
        self._sum = np.zeros(self.shard.length, parameters.dtype) if self.serves else None
        self._gathered, self._lr, self._limit, self._tickets = 0, 0.0, 0, 0
        self._asked = self._expecting = False
        self._outbox = [self._message(stop - start) for start, stop in self.ranges]
        self._inbox = [self._message(stop - start) for start, stop in self.ranges]

    def _message(self, count: int) -> Any:
        """A message with a head and `count` elements, as words of 8 bytes: MPI counts in 32 bits."""
        return np.zeros(HEAD + -(-count * self.parameters.dtype.itemsize // 8), np.float64)

    def _body(self, message: Any, count: int) -> Any:
        return message[HEAD:].view(self.parameters.dtype)[:count]

    def load_values(self, whole: Any) -> None:
        self.parameters.values[...] = whole
        if self.serves:
            start, stop = self.ranges[self.context.rank - self.workers]
            self.shard.values[...] = whole[start:stop]

    def begin_epoch(self, budget: int) -> None:
        self._limit, self._tickets, self._asked = budget, 0, False
        self.clocks.clocks.clear()
        self.clocks.waiting.clear()
        if self.serves:
            for worker in range(self.workers):
                self.clocks.join(worker)

    # --- workers ---
    def next_step(self) -> int | None:
        if self.serves:
            return None
        if not self._asked:
            self._asked = True
            self._send(ASK)
        return self._receive()

    def _send(self, kind: int, lr: float = 0.0) -> None:
        """To all servers; a gradient goes with a push."""
        comm, requests = self.group.comm, []
        self._expecting = kind in (PUSH, ASK)
        with host_view(self.parameters.gradients) as gradients:
            for index, (start, stop) in enumerate(self.ranges):
                message = self._outbox[index]
                message[:HEAD] = (kind, self._numbers, lr, 0)
                if kind == PUSH:
                    self._body(message, stop - start)[...] = gradients[start:stop]
                outgoing = message if kind == PUSH else message[:HEAD]
                requests.append(comm.Isend(outgoing, dest=self.workers + index))
                self.sent += outgoing.nbytes
            for request in requests:
                request.Wait()

    def _receive(self) -> int | None:
        """The answers of all servers: parameters, and from the first a ticket."""
        comm, boxes, self._expecting = self.group.comm, self._inbox, False
        with self._waiting("parameters from the servers"):
            requests = [
                comm.Irecv(box, source=self.workers + index) for index, box in enumerate(boxes)
            ]
            for request in requests:
                request.Wait()
        for box, (start, stop) in zip(boxes, self.ranges, strict=True):
            self.parameters.values[start:stop] = self.parameters.ops.to_device(
                self._body(box, stop - start)
            )
        ticket = int(boxes[0][TICKET])
        return None if ticket < 0 else ticket

    def apply_gradients(self, lr: float, update: Update) -> None:
        self._numbers += 1
        self._send(PUSH, lr)

    def end_epoch(self) -> None:
        if self.serves:
            return
        if self._expecting:  # asked to stop: the servers must get rid of their answers
            self._receive()
        self._send(DONE)

    def pause(self) -> None:
        """This worker leaves; nobody waits for it. It comes back with its next `claim`."""
        if self._expecting:
            self._receive()  # the answer to its last gradient
        self._send(LEAVE)
        self._asked = False

    # --- servers ---
    def serve(self) -> None:
        """Until all workers are done with the epoch."""
        MPI, comm, status = mpi.load(), self.group.comm, mpi.load().Status()
        left = set(range(self.workers)) if self.serves else set()
        message = self._message(self.shard.length)
        while left:
            with self._waiting("gradients from the workers"):
                comm.Recv(message, source=MPI.ANY_SOURCE, status=status)
            worker, head = status.Get_source(), message[:HEAD]
            kind = int(head[KIND])
            if kind == PUSH:
                self._take(
                    worker,
                    int(head[NUMBER]),
                    float(head[RATE]),
                    self._body(message, self.shard.length),
                )
            elif kind == ASK:
                self.clocks.ask(worker)
            else:
                self.clocks.leave(worker)
                left -= {worker} if kind == DONE else set()
            self._finish_round()
            for free in self.clocks.release():
                self._answer(free)

    def _take(self, worker: int, number: int, lr: float, gradient: Any) -> None:
        if not self.clocks.take(worker, number):
            return
        version, then = self._pulled.get(worker, (self.version, None))
        self.staleness[self.version - version] += 1
        if self.clocks.staleness == 0:
            assert self._sum is not None
            self._sum += gradient
            self._gathered, self._lr = self._gathered + 1, lr
            return
        if then is not None:
            moved = self.parameters.ops.to_host(self.shard.values) - then
            gradient += gradient.dtype.type(self.delay_compensation) * gradient * gradient * moved
        self._update(gradient, lr / self.workers)

    def _finish_round(self) -> None:
        """Staleness 0: the mean of the round's gradients, once all workers that are there have sent theirs."""
        if self._gathered and self.clocks.complete:
            assert self._sum is not None
            self._sum *= self._sum.dtype.type(1 / self._gathered)
            self._update(self._sum, self._lr)
            self._sum[...], self._gathered = 0, 0

    def _update(self, gradient: Any, lr: float) -> None:
        assert self.optimizer is not None
        self.shard.gradients[...] = self.parameters.ops.to_device(gradient)
        self.optimizer.step(lr)
        self.version += 1

    def _answer(self, worker: int) -> None:
        """Parameters, with the next ticket or the end of the epoch."""
        ticket = self._tickets if self._tickets < self._limit else -1
        self._tickets += 1
        answer = self._inbox[self.context.rank - self.workers]
        answer[TICKET] = ticket
        values = self.parameters.ops.to_host(self.shard.values)
        self._body(answer, self.shard.length)[...] = values
        self._pulled[worker] = (self.version, values.copy() if self.delay_compensation else None)
        with self._waiting(f"worker {worker} to take its parameters"):
            self.group.comm.Send(answer, dest=worker)
        self.sent += answer.nbytes

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        """Tell the watchdog what this rank waits for."""
        self.group.doing = (what, self.parameters.spare, "sum", "parameter server")
        try:
            yield
        finally:
            self.group.doing = None
            self.group.count += 1

    # --- consistency ---
    def synchronize(self) -> StepScalars:
        """All ranks get what the servers hold."""
        self.parameters.values[...] = self.gather_full(self.shard.values)
        return StepScalars()

    def gather_full(self, array: Any) -> Any:
        full = self.parameters.ops.xp.zeros(self.parameters.length, self.parameters.dtype)
        for index, (start, stop) in enumerate(self.ranges):
            if self.context.rank == self.workers + index:
                full[start:stop] = array
            broadcast(
                full[start:stop], comm=self.group, root=self.workers + index, name="parameters"
            )
        return full

    def load_shard(self, whole: Any, array: Any) -> None:
        if self.serves:
            start, stop = self.ranges[self.context.rank - self.workers]
            array[...] = self.parameters.ops.to_device(np.ascontiguousarray(whole[start:stop]))

    def report(self) -> dict[str, Any]:
        everyone = self.context.allgather_object(
            (dict(self.staleness), dict(self.clocks.applied), self.sent)
        )
        staleness, applied, _ = everyone[self.workers]  # every server sees the same gradients
        return {
            "sent_bytes": max(sent for _, _, sent in everyone),
            "staleness": dict(sorted(staleness.items())),
            "applied": sum(applied.values()),
        }


def share_of(parameters: FlatParameters, start: int, stop: int) -> FlatPart:
    """Elements [start, stop) of the parameters, in memory of their own."""
    xp = parameters.ops.xp
    slots = {}
    for name, slot in parameters.slots.items():
        low, high = (min(max(edge, start), stop) - start for edge in (slot.start, slot.stop))
        slots[name] = type(slot)(slot.spec, low, high)
    values, gradients = (xp.zeros(stop - start, parameters.dtype) for _ in range(2))
    return FlatPart(parameters.ops, parameters.dtype, values, gradients, slots)
