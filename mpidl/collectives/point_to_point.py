"""Messages between two ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mpidl.collectives.engine.reduction import is_half
from mpidl.collectives.group import Group, get_group
from mpidl.collectives.safety import checks
from mpidl.collectives.schedule import segments
from mpidl.comm import mpi, transport
from mpidl.comm.transport import host_view
from mpidl.errors import CollectiveError

if TYPE_CHECKING:
    from mpi4py import MPI as MPITypes


def send(buffer: Any, dest: int, *, comm: MPITypes.Intracomm | Group, tag: int = 0) -> None:
    """Send an array to another rank; returns once it may be changed.

    Args:
        buffer: (n,) array.
        dest: The receiver.
        comm: The ranks.
        tag: 0 or more; the receiver's has to be the same.
    """
    group = get_group(comm)
    checks.buffer(buffer, "send", "", writable=False)
    wire_tag = _peer_tag(dest, tag, group, "send")
    with group.during("send", buffer, f"to {dest}"), host_view(buffer, group.gpu_aware) as host:
        for start, stop in segments((0, host.size), transport.MOST):
            group.comm.Send(_as_wire(host[start:stop]), dest, wire_tag)


def recv(buffer: Any, source: int, *, comm: MPITypes.Intracomm | Group, tag: int = 0) -> None:
    """Receive an array from another rank.

    Args:
        buffer: (n,) array to receive into.
        source: The sender.
        comm: The ranks.
        tag: As the sender's.

    Raises:
        CollectiveError: The message has another length.
    """
    group = get_group(comm)
    checks.buffer(buffer, "recv", "")
    wire_tag = _peer_tag(source, tag, group, "recv")
    with group.during("recv", buffer, f"from {source}"), host_view(buffer, group.gpu_aware) as host:
        for start, stop in segments((0, host.size), transport.MOST):
            _receive(host[start:stop], source, group, wire_tag)


def _peer_tag(peer: int, tag: int, group: Group, what: str) -> int:
    """The MPI tag of a message to or from another rank, after checks."""
    checks.peer(peer, group, what)
    if peer == group.rank:
        raise CollectiveError(
            f"{what} with rank {peer}, which is this rank itself", remedy="copy the array instead"
        )
    return checks.wire_tag(tag, what)


def _receive(host: Any, source: int, group: Group, tag: int) -> None:
    MPI = mpi.load()
    status = MPI.Status()
    group.comm.Probe(source, tag, status)
    length = status.Get_count(MPI.BYTE)
    if length != host.nbytes:
        raise CollectiveError(
            f"rank {source} sent {length} bytes, but {host.nbytes} "
            f"({host.size} x {host.dtype}) are expected",
            where=f"rank {group.rank}",
            remedy="make both buffers equal in length and dtype",
        )
    group.comm.Recv(_as_wire(host), source, tag)


def _as_wire(buffer: Any) -> Any:
    """As integers where MPI has no such floats."""
    return buffer.view(np.uint16) if is_half(buffer.dtype) else buffer
