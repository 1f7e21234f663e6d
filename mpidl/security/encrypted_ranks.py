"""The channel "tls-like": opens it among all ranks of a job."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from mpidl.comm import mpi, objects
from mpidl.comm.activity import Activity, watched
from mpidl.comm.context import Context, protect
from mpidl.errors import SecurityError
from mpidl.options import Place as Setting
from mpidl.options import Section
from mpidl.security.credentials import load_credentials
from mpidl.security.handshake import MOST_BYTES, SIGNATURE, Handshake, Place, Secrets
from mpidl.security.records import Limits
from mpidl.security.secure_comm import NAME, SecureComm
from mpidl.security.session import Session
from mpidl.settings import CHANNEL

BOOT = Path("/proc/sys/kernel/random/boot_id")  # names a running Linux kernel
Scope = Literal["nodes", "all"]


class EncryptedRanks:
    """Encrypts what the ranks of a job send each other (docs/secure-ranks.md).

    Args:
        options: See `Options`.
    """

    class Options(Section, frozen=True):
        """Options of the channel.

        Attributes:
            scope: "nodes": messages between nodes are encrypted, and ranks of a node share memory
                as ever; "all": every message.
            certificate: The job's certificate and key: a folder, or the name of one in the folder
                of keys; by default `MPIDL_JOB_CERTIFICATE`.
            rekey_records: Messages (of 4 MiB at most) after which a key is replaced.
        """

        scope: Scope = "nodes"
        certificate: str = ""
        rekey_records: Annotated[int, Meta(ge=1 << 10, le=1 << 32)] = 1 << 20

    def __init__(self, options: Options) -> None:
        self.options = options

    @classmethod
    def from_environment(cls) -> EncryptedRanks:
        """As `MPIDL_CHANNEL` says.

        Raises:
            ConfigError: It says something else.
        """
        place = Setting(origin=lambda name: CHANNEL.name, remedy="write nodes, all or off")
        return cls(cls.Options.read({"scope": CHANNEL.value}, place))

    def open(self, context: Context, binding: bytes = b"") -> Context:
        """Agree on keys with all ranks. Collective.

        Args:
            context: The ranks.
            binding: What all of them must have alike.

        Returns:
            The same ranks, whose messages are protected.

        Raises:
            SecurityError: On every rank: one of them is not trusted.
        """
        scope = self.options.scope
        if context.channel != "off":
            if scope == "all" != context.channel:
                raise SecurityError(
                    f"the ranks are encrypted between nodes only ({CHANNEL.name}), but the "
                    'settings ask for scope = "all"',
                    where="security.channel.scope",
                    remedy=f"set {CHANNEL.name}=all",
                )
            return context
        limits = Limits(self.options.rekey_records)
        session = Session(self._agree(context, binding), context.rank, scope, limits)
        if not any(session.protects(rank) for rank in range(context.size)):
            return protect(context, context.comm, scope)
        mpi.before_finalize(session.outbox.flush)
        name = hashlib.sha256(b"mpidl ranks").digest()[:NAME]
        raw = mpi.load().Intracomm(context.comm).Clone()
        comm = SecureComm(raw, name, session, list(range(context.size)))
        watched(comm, Activity(comm, "encrypted job"))  # type: ignore[arg-type]
        comm.Barrier()  # the first messages: keys that do not fit show here
        return protect(context, comm, scope)

    def _agree(self, context: Context, binding: bytes) -> Secrets:
        """The handshake. Collective."""
        with context.fail_together("reading the certificate of the job"):
            node = f"{BOOT.read_text().strip() if BOOT.exists() else ''}/{context.node}"
            place = Place(context.rank, context.size, node, self.options.scope, binding)
            handshake = Handshake(load_credentials(self.options.certificate), place)
        comm = context.comm
        hellos = objects.allgather(comm, handshake.hello, bytes, limit=MOST_BYTES)
        with context.fail_together("greeting the other ranks"):
            signature = handshake.sign(hellos)
        signatures = objects.allgather(comm, signature, bytes, limit=2 * SIGNATURE)
        with context.fail_together("authenticating the other ranks"):
            return handshake.finish(signatures)
        raise AssertionError("fail_together has raised")
