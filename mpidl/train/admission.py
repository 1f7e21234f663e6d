"""Lets data sets, checkpoints and weights in: only signed ones, and only what the policy grants.

Both where the settings ask for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl.comm.context import Context
from mpidl.data import Reader
from mpidl.data.manifest import NAME, Manifest, parse_manifest
from mpidl.data.mixture import Mixture
from mpidl.errors import ConfigError, SecurityError
from mpidl.extras import load_extra
from mpidl.files import reading
from mpidl.security.sealed_file import read_bytes
from mpidl.security.section import SecurityConfig, site_security

if TYPE_CHECKING:
    from mpidl.security.access import Access
    from mpidl.security.trusted import Trusted


class Gate:
    """Whom signatures are accepted from, and what the policy grants.

    Args:
        trusted: None: nothing needs to be signed.
        who: Asks the policy: the name or folder of an identity; None: no policy is asked.
    """

    def __init__(self, trusted: Trusted | None = None, who: str | None = None) -> None:
        self._trusted = trusted
        self._who = who
        self._access: Access | None = None

    @staticmethod
    def of(security: SecurityConfig) -> Gate:
        """As the settings say.

        Raises:
            SecurityError: A file in security.trusted cannot be used.
        """
        who = security.identity if security.enforce_policy else None
        if not security.require_signatures:
            return Gate(who=who)
        load_extra("cryptography", "verifying signatures")
        from mpidl.security.trusted import Trusted

        return Gate(Trusted.load(security.trusted), who)

    @staticmethod
    def of_site() -> Gate:
        """As the site's settings say, for commands without a configuration."""
        return Gate.of(site_security())

    def require(self, right: str, object: str = "") -> None:
        """Refuse what the site's policy does not grant to this process. For rank 0.

        Args:
            right: One of `mpidl.security.policy.RIGHTS`.
            object: The data set, for "read".

        Raises:
            SecurityError: It does not; the message says what lacks.
        """
        if self._who is None:
            return
        if self._access is None:
            load_extra("cryptography", "asking the policy")
            from mpidl.security.access import open_access
            from mpidl.security.signer import find_folder

            self._access = open_access(find_folder(self._who))
        self._access.require(right, object)

    def require_data(self, folder: Path | str) -> None:
        """Refuse a data set that this process may not read. For rank 0.

        Raises:
            SecurityError: It may not.
            DataError: There is no such folder.
        """
        if self._who is not None:
            from mpidl.security.objects import data_object

            self.require("read", data_object(Path(folder)))

    @contextmanager
    def file(self, path: Path) -> Iterator[None]:
        """A block that may use a file, such as a checkpoint.

        Raises:
            SecurityError: It is not signed by anybody trusted, or has changed in the block.
        """
        if self._trusted is None:
            yield
            return
        from mpidl.security.signing import admitted

        with admitted(path, self._trusted):
            yield

    def data_set(self, folder: Path | str) -> str:
        """Refuse a data set whose manifest, or the checksums in it, nobody trusted has signed.

        The files themselves are compared with these checksums by the `Reader`, with `data.verify`.

        Returns:
            SHA-256 of the manifest as it was signed; empty: nothing needs to be signed.

        Raises:
            SecurityError: It is not signed.
            DataError: The manifest cannot be read.
        """
        if self._trusted is None:
            return ""
        from mpidl.security.signing import read_signature

        found = read_signature(Path(folder), self._trusted)
        signed = found.statement.digests
        where = str(Path(folder) / NAME)
        if found.statement.predicate.serialization.hash_type != "sha256" or NAME not in signed:
            raise _not_covered(f"the signature holds no SHA-256 of {NAME}", where)
        manifest, digest = _read(folder)
        if digest != signed[NAME]:
            raise _not_covered("has changed since it was signed", where)
        for shard in manifest.shards:
            if shard.sha256 is None:
                raise SecurityError(
                    f"holds no SHA-256 of {shard.file}",
                    where=where,
                    remedy="make the index with 'mpidl index --checksum', then sign it",
                )
            if shard.mtime_ns is None and signed.get(shard.file) != shard.sha256:
                raise _not_covered(f"the signature does not cover {shard.file}", where)
        return digest

    def check_verifies(self, verify: bool) -> None:
        """Refuse to leave out the comparison with checksums that signatures rely on.

        Raises:
            ConfigError: It is left out.
        """
        if self._trusted is not None and not verify:
            raise ConfigError(
                "data.verify is false, but only signed data may be used",
                where="data.verify",
                remedy="set data.verify = true, or security.require_signatures = false",
            )


def admit_data(gate: Gate, folders: Sequence[str], context: Context, *, verify: bool) -> list[str]:
    """`Gate.data_set` of several, on rank 0 for all ranks. Collective.

    Returns:
        SHA-256 of each manifest, for `check_opened`.
    """

    def check() -> list[str]:
        gate.check_verifies(verify)
        for folder in folders:
            gate.require_data(folder)
        return [gate.data_set(folder) for folder in folders]

    return context.on_root(check, "verifying signatures", list[str])


def check_opened(reader: Reader | Mixture, digests: Sequence[str], context: Context) -> None:
    """Refuse data sets whose manifest was replaced between its verification and here. Collective.

    Raises:
        SecurityError: One was; on every rank.
    """
    with context.fail_together("verifying signatures"):
        for one, digest in zip(readers_of(reader), digests, strict=True):
            if not digest:
                continue
            manifest, now = _read(one.folder)
            if now != digest or manifest != one.manifest:
                raise _not_covered("was replaced meanwhile", str(one.folder / NAME))


def open_signed(
    folder: Path | str, context: Context, security: SecurityConfig | None = None, **options: Any
) -> Reader:
    """Open a data set, which is signed where that is asked for. Collective.

    Args:
        folder: Of the data set.
        context: The ranks.
        security: None: the site's.
        options: Of the `Reader`.

    Raises:
        SecurityError: It is not signed by anybody trusted; on every rank.
        DataError: It cannot be used; on every rank.
    """
    with context.fail_together("reading security.trusted"):
        gate = Gate.of_site() if security is None else Gate.of(security)
    signed = admit_data(gate, [str(folder)], context, verify=options.get("verify", True))
    reader = Reader(folder, context=context, **options)
    check_opened(reader, signed, context)
    return reader


def readers_of(reader: Reader | Mixture) -> tuple[Reader, ...]:
    """The single data sets."""
    return reader.readers if isinstance(reader, Mixture) else (reader,)


def manifest_digest(folder: Path | str) -> str:
    """SHA-256 of a manifest, in hexadecimal: it stands for the whole data set."""
    return _read(folder)[1]


def _read(folder: Path | str) -> tuple[Manifest, str]:
    """A manifest, and the SHA-256 of the bytes that it was parsed from.

    Of a sealed one that of its content: a signature stays valid when a data set is sealed later.
    """
    path = Path(folder) / NAME
    with reading(path):
        raw = read_bytes(path)
    return parse_manifest(raw, path), hashlib.sha256(raw).hexdigest()


def _not_covered(what: str, where: str) -> SecurityError:
    return SecurityError(what, where=where, remedy="have the data set signed anew (mpidl sign)")
