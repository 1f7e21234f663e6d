"""What stands in for a communicator whose messages are protected on their way.

It is no MPI communicator, on purpose: what does not go through its methods cannot send anything.
`mpidl.security.secure_comm` is the one there is; who needs a true communicator asks here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpidl.comm import mpi
from mpidl.errors import SecurityError

if TYPE_CHECKING:
    from mpi4py import MPI as MPITypes


class Protected:
    """Base of communicators that protect messages.

    Attributes:
        shares_memory: Ranks of a node may use common memory.
    """

    shares_memory: bool = False


def is_protected(comm: Any) -> bool:
    """Whether a communicator protects its messages."""
    return isinstance(comm, Protected)


def plain(comm: Any, what: str, remedy: str) -> MPITypes.Intracomm:
    """A true communicator, for what MPI does by itself and nobody can encrypt.

    Args:
        comm: The ranks.
        what: Needs it, for the message.
        remedy: The setting to change.

    Raises:
        SecurityError: The messages of these ranks are encrypted.
    """
    if is_protected(comm):
        raise SecurityError(
            f"{what} would send unencrypted messages between ranks that encrypt theirs",
            where="security.channel",
            remedy=remedy,
        )
    made: MPITypes.Intracomm = comm
    return made


def clone(comm: Any) -> Any:
    """A communicator of the same ranks, protected as this one. Collective."""
    return comm.Clone() if is_protected(comm) else mpi.load().Intracomm(comm).Clone()
