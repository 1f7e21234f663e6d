"""A worker: sends its gradients to all servers, and gets parameters back."""

from __future__ import annotations

from collections.abc import Sequence

from mpidl.collectives import Group
from mpidl.comm.transport import host_view
from mpidl.nn import FlatParameters
from mpidl.sync.asynchronous.parameter_server.messages import TAG, Kind, Message


class Worker:
    """One rank that computes gradients.

    Args:
        parameters: Of the model; a step changes its values.
        group: All ranks; those from `first` on are the servers.
        first: See group.
        ranges: Elements [start, stop) that each server holds.

    Attributes:
        sent: Bytes that this rank has put on the wire.
    """

    def __init__(
        self,
        parameters: FlatParameters,
        group: Group,
        first: int,
        ranges: Sequence[tuple[int, int]],
    ) -> None:
        self.parameters = parameters
        self.group = group
        self.first = first
        self.ranges = ranges
        self.sent = 0
        self._outbox = [Message(stop - start, parameters.dtype) for start, stop in ranges]
        self._inbox = [Message(stop - start, parameters.dtype) for start, stop in ranges]
        self._gradients = 0  # sent so far: their numbers
        self._asked = False  # for parameters, in this epoch
        self._expects_answer = False

    def begin_epoch(self) -> None:
        """The next step is the first of an epoch."""
        self._asked = False

    def next_step(self) -> int | None:
        """Wait until the servers let this worker go on; fills the parameters."""
        if not self._asked:
            self._asked = True
            self._send(Kind.ASK)
        return self._receive()

    def push(self, lr: float) -> None:
        """Send the gradients, to be used at the learning rate `lr`."""
        self._gradients += 1
        self._send(Kind.PUSH, lr)

    def end_epoch(self) -> None:
        """Tell the servers not to wait for this worker."""
        if self._expects_answer:  # it was asked to stop: the servers must get rid of their answers
            self._receive()
        self._send(Kind.DONE)

    def _send(self, kind: Kind, lr: float = 0.0) -> None:
        """To all servers; a gradient goes with a push."""
        requests = []
        self._expects_answer = kind is not Kind.DONE
        with host_view(self.parameters.gradients) as gradients:
            for index, (start, stop) in enumerate(self.ranges):
                message = self._outbox[index]
                message.say(kind, self._gradients, lr)
                if kind is Kind.PUSH:
                    message.body[...] = gradients[start:stop]
                outgoing = message.words if kind is Kind.PUSH else message.head
                requests.append(self.group.comm.Isend(outgoing, dest=self.first + index, tag=TAG))
                self.sent += outgoing.nbytes
            for request in requests:
                request.Wait()

    def _receive(self) -> int | None:
        """The answers of all servers: parameters, and the number of the step."""
        self._expects_answer = False
        comm = self.group.comm
        with self.group.during("parameters from the servers"):
            requests = [
                comm.Irecv(message.words, source=self.first + index, tag=TAG)
                for index, message in enumerate(self._inbox)
            ]
            for request in requests:
                request.Wait()
        for message, (start, stop) in zip(self._inbox, self.ranges, strict=True):
            self.parameters.values[start:stop] = self.parameters.ops.to_device(message.body)
        return self._inbox[0].step  # every server answers in an order of its own
