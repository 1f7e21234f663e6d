"""A communicator whose messages are sealed: what the rest of mpidl uses in place of MPI's.

It has the methods that mpidl needs, and no others: what is not here cannot be sent. Its collectives
are made of sealed messages; MPI's own would send what ranks hold in the clear.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from mpidl.comm import mpi
from mpidl.comm.activity import Activity, recorded
from mpidl.comm.protected import Protected
from mpidl.errors import SecurityError
from mpidl.security.sealed_messages import Messages, Raw, Requests, as_bytes
from mpidl.security.session import Session

if TYPE_CHECKING:
    from mpi4py import MPI as MPITypes

TAG = 1  # of the messages of collectives, on a communicator of their own
NAME = 8  # bytes


class SecureComm(Protected):
    """Ranks that talk through sealed messages. Made and freed by all of them together.

    Args:
        comm: Their MPI communicator; it now belongs to this one.
        name: Names this communicator among all of the job, alike on its ranks.
        session: Keys for all ranks of the job.
        members: The number of each rank in the job.

    Attributes:
        shares_memory: Ranks of a node may use common memory.
        activity: Told of collectives, for the watchdog.
        requests: Completes the requests of `Isend` and `Irecv`.
    """

    requests = Requests

    def __init__(
        self, comm: MPITypes.Intracomm, name: bytes, session: Session, members: list[int]
    ) -> None:
        self.shares_memory = session.scope == "nodes"
        self.activity: Activity | None = None
        self._comm = comm
        self._name = name
        self._session = session
        self._members = members
        self._made = 0  # communicators made of this one
        self._rank, self._size = comm.Get_rank(), comm.Get_size()
        messages = Messages(comm, self._child(b"messages"), session, members)
        self._control = Messages(comm.Clone(), self._child(b"control"), session, members)
        self.Isend, self.Irecv = messages.Isend, messages.Irecv
        self.Send, self.Recv, self.Sendrecv = messages.Send, messages.Recv, messages.Sendrecv
        self.Probe, self.Iprobe = messages.Probe, messages.Iprobe

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise SecurityError(
            f"there is no encrypted {name} between ranks",
            where="security.channel",
            remedy="use mpidl.collectives, or turn the channel off",
        )

    # --- who we are ---
    def Get_rank(self) -> int:
        """This rank."""
        return self._rank

    def Get_size(self) -> int:
        """How many there are."""
        return self._size

    rank = property(Get_rank)
    size = property(Get_size)

    def Get_group(self) -> MPITypes.Group:
        """Their MPI group."""
        return self._comm.Get_group()

    def Get_attr(self, keyval: int) -> Any:
        """An attribute, as of MPI."""
        return self._comm.Get_attr(keyval)

    def Set_attr(self, keyval: int, value: Any) -> None:
        """Set an attribute, as of MPI."""
        self._comm.Set_attr(keyval, value)

    def Abort(self, status: int = 0) -> NoReturn:
        """End the job."""
        self._comm.Abort(status)
        raise SystemExit(status)

    # --- other communicators ---
    def Clone(self) -> SecureComm:
        """Another one of the same ranks. Collective."""
        with recorded(self, "Clone"):
            return self._next(self._comm.Clone(), b"clone", self._members)

    Dup = Clone

    def Split(self, color: int = 0, key: int = 0) -> Any:
        """One for each color. Collective."""
        with recorded(self, "Split"):
            made: Any = self._comm.Split(color, key)
        return self._part(made, f"split {color}")

    def Split_type(self, split_type: int, key: int = 0) -> Any:
        """The ranks that can share memory: MPI's own where that needs no seal. Collective."""
        with recorded(self, "Split_type"):
            made: Any = self._comm.Split_type(split_type, key)
            if made == mpi.load().COMM_NULL:
                return self._part(made, "")
            firsts = np.empty(1, np.int64)
            firsts[0] = self._places(made)[0]
        members = [self._members[place] for place in self._places(made)]
        if not any(self._session.protects(member) for member in members):
            self._made += 1
            return made
        return self._part(made, f"node {firsts[0]}")

    def _places(self, comm: MPITypes.Comm) -> list[int]:
        """The ranks here of the ranks of another communicator."""
        group = type(self._comm.Get_group())
        there = comm.Get_group()
        return list(
            group.Translate_ranks(there, list(range(comm.Get_size())), self._comm.Get_group())
        )

    def _part(self, made: MPITypes.Intracomm, label: str) -> Any:
        if made == mpi.load().COMM_NULL:
            self._made += 1
            return made
        return self._next(made, label.encode(), [self._members[p] for p in self._places(made)])

    def _next(self, comm: MPITypes.Intracomm, label: bytes, members: list[int]) -> SecureComm:
        self._made += 1
        name = self._child(b"%d " % self._made + label)
        return SecureComm(comm, name, self._session, members)

    def _child(self, label: bytes) -> bytes:
        return hashlib.sha256(self._name + b" " + label).digest()[:NAME]

    def Free(self) -> None:
        """Free it. Collective."""
        self._control.comm.Free()
        self._comm.Free()

    # --- collectives ---
    def Barrier(self) -> None:
        """Wait for all: dissemination (Hensgen et al., 1988)."""
        token, distance = np.zeros(1, np.uint8), 1
        with recorded(self, "Barrier"):
            while distance < self._size:
                self._shift(token, token.copy(), distance)
                distance *= 2

    def Bcast(self, buffer: Any, root: int = 0) -> None:
        """The root's buffer on every rank: a binomial tree."""
        raw, place = as_bytes(buffer), (self._rank - root) % self._size
        with recorded(self, "Bcast"):
            distance = 1 << (self._size - 1).bit_length()
            while distance > 1:
                distance //= 2
                other = (self._rank + distance) % self._size
                if place % (2 * distance) == 0 and place + distance < self._size:
                    self._control.Send(raw, other, TAG)
                elif place % (2 * distance) == distance:
                    self._control.Recv(raw, (self._rank - distance) % self._size, TAG)

    def Allgather(self, send: Any, receive: Any) -> None:
        """Equal buffers of all ranks, in rank order, on every rank."""
        own, whole = as_bytes(send), as_bytes(receive)
        with recorded(self, "Allgather"):
            self._gather(own, whole, [own.size] * self._size)

    def Allgatherv(self, send: Any, receive: Any) -> None:
        """Buffers of all ranks; `receive` is [array, how many elements of each rank]."""
        target, counts = receive
        item = target.dtype.itemsize
        with recorded(self, "Allgatherv"):
            own, whole = as_bytes(send), as_bytes(target)
            self._gather(own, whole, [count * item for count in counts])

    def Allreduce(self, send: Any, receive: Any, op: Any = None) -> None:
        """Reduce small arrays: all ranks get all, and reduce them in rank order."""
        MPI = mpi.load()
        known = (MPI.SUM, np.add), (MPI.MIN, np.minimum), (MPI.MAX, np.maximum)
        function = next(function for kind, function in known if kind == (op or MPI.SUM))
        own = receive if send is MPI.IN_PLACE else send
        everyone = np.empty((self._size, *own.shape), own.dtype)
        with recorded(self, "Allreduce"):
            self._gather(as_bytes(own), as_bytes(everyone), [own.nbytes] * self._size)
        receive[...] = function.reduce(everyone)

    def _gather(self, own: Raw, whole: Raw, counts: list[int]) -> None:
        """All-gather of blocks of known lengths (Bruck et al., 1997): log2 P rounds."""
        rank, size = self._rank, self._size
        held = [own]  # blocks of this rank and of those that follow it
        while len(held) < size:
            distance = len(held)
            count = min(distance, size - distance)
            lengths = [counts[(rank + distance + index) % size] for index in range(count)]
            incoming = np.empty(sum(lengths), np.uint8)
            self._shift(np.concatenate(held[:count]), incoming, size - distance)
            ends = np.cumsum(lengths)
            held += [incoming[end - n : end] for end, n in zip(ends, lengths, strict=True)]
        starts = np.concatenate(([0], np.cumsum(counts)))
        for index, block in enumerate(held):
            place = (rank + index) % size
            whole[starts[place] : starts[place + 1]] = block

    def _shift(self, outgoing: Raw, incoming: Raw, distance: int) -> None:
        """Send to the rank that is `distance` ahead, and receive from the one that far behind."""
        dest, source = (self._rank + distance) % self._size, (self._rank - distance) % self._size
        self._control.Sendrecv(outgoing, dest, TAG, incoming, source, TAG)
