"""Messages between the ranks of one MPI communicator, sealed where they need it.

A long message travels as several records of `RECORD` bytes: while one is on its way the next one is
sealed, and the one before is opened. Records of one source and tag keep their order, as MPI's
messages do. A record that is not genuine ends the job on all ranks: the others cannot know of it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm import mpi
from mpidl.errors import CollectiveError
from mpidl.security.records import OVERHEAD

if TYPE_CHECKING:
    from mpi4py import MPI as MPITypes

    from mpidl.security.session import Session

RECORD = 1 << 22  # bytes; smaller ones cost more calls than they save cache misses
# Bytes up to which a blocking send does not wait for the receiver: what travels is a copy anyway,
# and the seal takes a message of 4 KiB beyond what MPI libraries send at once.
BUFFERED = 16 << 10
WINDOW = 4  # records of a blocking send that are under way at once
Raw = NDArray[np.uint8]


def as_bytes(buffer: Any) -> Raw:
    """The memory of a buffer as mpi4py takes it: an array, bytes, or [either, MPI.BYTE]."""
    if isinstance(buffer, (list, tuple)):
        buffer = buffer[0]
    if not isinstance(buffer, np.ndarray):
        return np.frombuffer(buffer, np.uint8)
    if not buffer.flags.c_contiguous:
        raise CollectiveError(
            "cannot send an array that is not contiguous", remedy="copy it: numpy.ascontiguousarray"
        )
    return buffer.reshape(-1).view(np.uint8)


class Requests:
    """Completes requests, sealed and plain ones together: what `MPI.Request` has as class."""

    @staticmethod
    def Waitall(requests: list[Any]) -> None:
        """Wait for all."""
        wait_some = mpi.load().Request.Waitsome
        pending = [(one, part) for one in requests for part in getattr(one, "parts", [one])]
        while pending:
            ready = wait_some([part for _, part in pending])
            if ready is None:  # none of them is active
                return
            for index in ready:
                owner, part = pending[index]
                if owner is not part:
                    owner.done(part)
            pending = [one for index, one in enumerate(pending) if index not in set(ready)]

    @staticmethod
    def Testall(requests: list[Any]) -> bool:
        """Whether all are complete."""
        fine = True
        for one in requests:
            if not isinstance(one, SealedRequest):
                fine = bool(one.Test()) and fine
                continue
            for part in list(one.parts):
                if part.Test():
                    one.done(part)
            fine = fine and not one.parts
        return fine


class SealedRequest:
    """A message under way.

    Attributes:
        parts: The requests of its records that are not complete.
    """

    def __init__(self, messages: Messages, memory: Raw) -> None:
        self.parts: list[Any] = []
        self._messages = messages
        self._memory = memory
        self._opens: dict[int, Any] = {}  # request -> what to do with its record

    def add(self, part: Any, opens: Any = None) -> None:
        """A record; `opens` is called when it is there."""
        self.parts.append(part)
        if opens is not None:
            self._opens[id(part)] = opens

    def done(self, part: Any) -> None:
        """A record is complete."""
        opens = self._opens.pop(id(part), None)
        self.parts = [one for one in self.parts if one is not part]
        if opens is not None:
            self._messages.opening(opens)
        if not self.parts:
            self._messages.session.pool.give(self._memory)

    def Wait(self) -> None:
        """Wait for it."""
        Requests.Waitall([self])

    def Test(self) -> bool:
        """Whether it is complete."""
        return Requests.Testall([self])


class Messages:
    """Sealed messages among the ranks of a communicator.

    Args:
        comm: The communicator, which nothing else uses.
        name: 8 bytes that name it among all of the job; alike on its ranks.
        session: Keys for all ranks of the job.
        members: The number of each rank in the job.
    """

    def __init__(
        self, comm: MPITypes.Intracomm, name: bytes, session: Session, members: list[int]
    ) -> None:
        self.comm = comm
        self.name = name
        self.session = session
        self.members = members
        MPI = mpi.load()
        self._nobody, self._anybody, self._any_tag = MPI.PROC_NULL, MPI.ANY_SOURCE, MPI.ANY_TAG
        self._byte = MPI.BYTE
        self._sealed = [session.protects(member) for member in members]
        self._sent: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._received: defaultdict[tuple[int, int], int] = defaultdict(int)
        # messages whose begin a probe has taken: (source, tag) -> their length, the first part
        self._taken: dict[tuple[int, int], tuple[int, Raw]] = {}

    # --- sending ---
    def Isend(self, buffer: Any, dest: int, tag: int = 0) -> Any:
        """Begin to send; the buffer may be changed at once."""
        if dest == self._nobody or not self._sealed[dest]:
            return self.comm.Isend(buffer, dest, tag)
        plain = as_bytes(buffer)
        return self._post(plain, plain.size, dest, tag)

    def Send(self, buffer: Any, dest: int, tag: int = 0) -> None:
        """Send."""
        if dest == self._nobody or not self._sealed[dest]:
            self.comm.Send(buffer, dest, tag)
            return
        plain = as_bytes(buffer)
        total, step, before = plain.size, WINDOW * RECORD, None
        if total <= RECORD:
            sealed = self._seal(plain, dest, tag)
            if total <= BUFFERED:
                self.session.outbox.add(self.comm.Isend(sealed, dest, tag), sealed)
                return
            self.comm.Send(sealed, dest, tag)
            self.session.pool.give(sealed)
            return
        for start in range(0, max(1, total), step):
            request = self._post(plain[start : start + step], total, dest, tag)
            if before is not None:
                before.Wait()
            before = request
        if before is not None:
            before.Wait()

    def _seal(self, plain: Raw, dest: int, tag: int) -> Raw:
        """A message of one record, sealed in memory of the pool."""
        sealed, number = self.session.pool.take(plain.size + OVERHEAD), self._sent[dest, tag]
        self._sent[dest, tag] = number + 1
        sender = self.session.sender(self.members[dest])
        sender.seal((self.name, tag, number), plain.size, plain, sealed)
        return sealed

    def _post(self, plain: Raw, total: int, dest: int, tag: int) -> SealedRequest:
        """Seal and send records of a message of `total` bytes."""
        count = max(1, -(-plain.size // RECORD))
        memory = self.session.pool.take(plain.size + count * OVERHEAD)
        request, at = SealedRequest(self, memory), 0
        sender, number = self.session.sender(self.members[dest]), self._sent[dest, tag]
        self._sent[dest, tag] = number + count
        for index in range(count):
            piece = plain[index * RECORD : (index + 1) * RECORD]
            sealed = memory[at : at + piece.size + OVERHEAD]
            at += sealed.size
            sender.seal((self.name, tag, number + index), total, piece, sealed)
            request.add(self.comm.Isend(sealed, dest, tag))
        return request

    # --- receiving ---
    def Irecv(self, buffer: Any, source: int, tag: int = 0) -> Any:
        """Begin to receive a message that is as long as the buffer."""
        if source == self._nobody:
            return self.comm.Irecv(buffer, source, tag)
        if source == self._anybody or tag == self._any_tag:
            raise CollectiveError(
                "an encrypted message of anybody cannot be received without waiting",
                remedy="name source and tag",
            )
        if not self._sealed[source]:
            return self.comm.Irecv(buffer, source, tag)
        target = as_bytes(buffer)
        count = max(1, -(-target.size // RECORD))
        memory = self.session.pool.take(target.size + count * OVERHEAD)
        request, at = SealedRequest(self, memory), 0
        number = self._received[source, tag]
        self._received[source, tag] = number + count
        for index in range(count):
            piece = target[index * RECORD : (index + 1) * RECORD]
            sealed = memory[at : at + piece.size + OVERHEAD]
            at += sealed.size
            opens = (source, tag, number + index, target.size, sealed, piece)
            request.add(self.comm.Irecv(sealed, source, tag), opens)
        return request

    def Recv(
        self, buffer: Any, source: int = -1, tag: int = -1, status: MPITypes.Status | None = None
    ) -> None:
        """Receive a message that is no longer than the buffer.

        Args:
            buffer: Where it goes.
            source: A rank, PROC_NULL or ANY_SOURCE.
            tag: A tag or ANY_TAG.
            status: Says whose message it was, and how long.
        """
        MPI = mpi.load()
        if source == self._nobody:
            self.comm.Recv(buffer, source, tag, status)
            return
        target = as_bytes(buffer)
        if source >= 0 and self._sealed[source] and tag >= 0 and not self._taken:
            # nearly always: one call of MPI
            sealed = self.session.pool.take(min(target.size, RECORD) + OVERHEAD)
            self.comm.Recv(sealed, source, tag, status)
            total = self._receive(sealed, target, source, tag)
            self.session.pool.give(sealed)
            if status is not None:
                status.Set_elements(self._byte, total)
            return
        known = MPI.Status() if status is None else status
        first = self._first(source, tag, known)
        source, tag = known.Get_source(), known.Get_tag()
        if first is None:
            self.comm.Recv(buffer, source, tag, known)
            return
        total, head = first
        if total > target.size:
            self.session.fail(_too_long(source, total, target.size))
        target[: head.size] = head
        self._rest(target, head.size, total, source, tag)
        known.Set_elements(self._byte, total)

    def _first(self, source: int, tag: int, status: MPITypes.Status) -> tuple[int, Raw] | None:
        """Length and first part of the next message; None if that one is not sealed. Blocking."""
        key = next((key for key in self._taken if _fits(key, source, tag)), None)
        if key is not None:
            status.Set_source(key[0])
            status.Set_tag(key[1])
            return self._taken.pop(key)
        self.comm.Probe(source, tag, status)
        source, tag = status.Get_source(), status.Get_tag()
        if not self._sealed[source]:
            return None  # it stays where it is
        sealed = np.empty(status.Get_count(self._byte), np.uint8)
        self.comm.Recv(sealed, source, tag, status)
        total = self._total(sealed, source)
        part = np.empty(min(sealed.size - OVERHEAD, RECORD), np.uint8)
        self._open(sealed, part, total, source, tag)
        return total, part

    def _total(self, sealed: Raw, source: int) -> int:
        """The length of a message as its first record claims it; opening that verifies it."""
        return self.session.guarded(self.session.receiver(self.members[source]).total, sealed)

    def _open(self, sealed: Raw, piece: Raw, total: int, source: int, tag: int) -> None:
        """Open the next record of a stream."""
        number = self._received[source, tag]
        self._received[source, tag] = number + 1
        receiver = self.session.receiver(self.members[source])
        self.session.guarded(receiver.open, (self.name, tag, number), total, sealed, piece)

    def _receive(self, sealed: Raw, target: Raw, source: int, tag: int) -> int:
        """Open a message that begins with the record `sealed`, with room behind; its length."""
        total = self._total(sealed, source)
        if total > target.size:
            self.session.fail(_too_long(source, total, target.size))
        size = min(total, RECORD)
        self._open(sealed[: size + OVERHEAD], target[:size], total, source, tag)
        self._rest(target, size, total, source, tag)
        return total

    def _rest(self, target: Raw, start: int, total: int, source: int, tag: int) -> None:
        """Receive the records behind the first one."""
        for at in range(start, total, RECORD):
            piece = target[at : min(at + RECORD, total)]
            sealed = self.session.pool.take(piece.size + OVERHEAD)
            self.comm.Recv(sealed, source, tag)
            self._open(sealed, piece, total, source, tag)
            self.session.pool.give(sealed)

    def opening(self, record: tuple[int, int, int, int, Raw, Raw]) -> None:
        """Open a record that has come: (source, tag, number, total, sealed, where it goes)."""
        source, tag, number, total, sealed, piece = record
        receiver = self.session.receiver(self.members[source])
        claimed = self._total(sealed, source)
        if claimed != total:
            self.session.fail(_too_long(source, claimed, total))
        place = self.name, tag, number
        self.session.guarded(receiver.open, place, total, sealed, piece)

    # --- both ---
    def Sendrecv(
        self, sends: Any, dest: int, sendtag: int, receives: Any, source: int, recvtag: int
    ) -> None:
        """Send to one rank, and receive from one."""
        plain, target = as_bytes(sends), as_bytes(receives)
        if (
            dest < 0
            or source < 0
            or not (self._sealed[dest] and self._sealed[source])
            or max(plain.size, target.size) > RECORD
            or self._taken
        ):
            request = self.Isend(sends, dest, sendtag)
            self.Recv(receives, source, recvtag)
            request.Wait()
            return
        pool = self.session.pool
        sealed, incoming = self._seal(plain, dest, sendtag), pool.take(target.size + OVERHEAD)
        self.comm.Sendrecv(sealed, dest, sendtag, incoming, source, recvtag)
        self._receive(incoming, target, source, recvtag)
        pool.give(sealed)
        pool.give(incoming)

    def Iprobe(
        self, source: int = -1, tag: int = -1, status: MPITypes.Status | None = None
    ) -> bool:
        """Whether a message has come; `status` has its length."""
        known = mpi.load().Status() if status is None else status
        if not any(_fits(key, source, tag) for key in self._taken) and not self.comm.Iprobe(
            source, tag, known
        ):
            return False
        self.Probe(source, tag, known)
        return True

    def Probe(self, source: int = -1, tag: int = -1, status: MPITypes.Status | None = None) -> bool:
        """Wait for a message; `status` has its length."""
        known = mpi.load().Status() if status is None else status
        first = self._first(source, tag, known)
        if first is not None:
            self._taken[known.Get_source(), known.Get_tag()] = first
            known.Set_elements(self._byte, first[0])
        return True


def _fits(key: tuple[int, int], source: int, tag: int) -> bool:
    """Whether a message is one of those that are asked for (-1: of any)."""
    return source in (-1, key[0]) and tag in (-1, key[1])


def _too_long(source: int, length: int, expected: int) -> CollectiveError:
    return CollectiveError(
        f"rank {source} sent {length} bytes, but {expected} are expected",
        remedy="make both buffers equal in length and dtype",
    )
