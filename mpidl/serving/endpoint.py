"""endpoint.json: where a running server can be reached, for its owner alone.

A SLURM job starts on any node and on any free port; this file tells `mpidl query` which.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec

from mpidl.errors import ConfigError, DataError, notice, wrap
from mpidl.files import partial_path, publish, read_error, writing

FILE = "endpoint.json"
MOST_BYTES = 1 << 16
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")
# What is printed as a part of commands must not hold anything that a shell obeys
Host = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=255)]
Address = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.:%_-]+\Z", max_length=255)]
Port = Annotated[int, msgspec.Meta(ge=1, lt=1 << 16)]


class Endpoint(msgspec.Struct, frozen=True):
    """A running server.

    Attributes:
        host: Name of the node where rank 0 runs.
        address: That it listens on.
        http_port: Of REST.
        grpc_port: Of gRPC.
        job: Number of the SLURM job, or "".
        pid: Of rank 0.
        models: Names.
        started: UTC, as in ISO 8601.
        fingerprint: SHA-256 of the server's certificate; "": it has none, and TLS is not spoken.
        token_file: Of a token that clients may show; "": they know of one, or have a certificate.
    """

    host: Host
    address: Address
    http_port: Port
    grpc_port: Port
    job: Annotated[str, msgspec.Meta(pattern=r"^[0-9_]*\Z", max_length=64)]
    pid: Annotated[int, msgspec.Meta(ge=1)]
    models: Annotated[list[str], msgspec.Meta(max_length=1 << 16)]
    started: Annotated[str, msgspec.Meta(max_length=64)]
    fingerprint: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    token_file: Annotated[str, msgspec.Meta(max_length=4096)] = ""

    @property
    def is_here(self) -> bool:
        """Whether this machine is the server's."""
        return self.host == socket.gethostname()

    @property
    def target(self) -> str | None:
        """The address to connect to from this machine; None where none can be reached."""
        if self.address in LOOPBACK:
            return self.address if self.is_here else None
        if self.address in EVERYWHERE:
            return self.address_of_loopback if self.is_here else self.host
        return self.address

    @property
    def address_of_loopback(self) -> str:
        """The address by which the server's own machine reaches it."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.address, self.address)

    @property
    def tunnel(self) -> str:
        """The command that makes both ports reachable from a machine that can log in there."""
        address = self.address_of_loopback
        address = f"[{address}]" if ":" in address else address
        ports = (self.http_port, self.grpc_port)
        options = " ".join(f"-L {port}:{address}:{port}" for port in ports)
        return f"ssh -N {options} {self.host}"


def describe(
    address: str,
    http_port: int,
    grpc_port: int,
    models: list[str],
    fingerprint: str = "",
    token_file: str = "",
) -> Endpoint:
    """The endpoint of this process.

    Args:
        address: That it listens on.
        http_port: Of REST.
        grpc_port: Of gRPC.
        models: Names.
        fingerprint: Of the certificate, or "".
        token_file: For clients, or "".
    """
    return Endpoint(
        socket.gethostname(),
        address,
        http_port,
        grpc_port,
        os.environ.get("SLURM_JOB_ID", ""),
        os.getpid(),
        models,
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        fingerprint,
        token_file,
    )


def place_of(path: Path) -> Path:
    """Where the endpoint of what is served is written.

    Args:
        path: models.toml, a run folder or a checkpoint; or an endpoint.json itself.

    Raises:
        ConfigError: There is no such file or folder.
    """
    if path.suffix == ".json":
        return path
    if path.is_dir():
        return path / FILE
    if not path.exists():
        raise ConfigError("there is no such file or folder", where=str(path), remedy="check it")
    return path.absolute().parent / FILE


@contextmanager
def announced(endpoint: Endpoint, served: Path, file: Path | None = None) -> Iterator[None]:
    """Have the file there for the time of a block, and say how to reach the server.

    Args:
        endpoint: Its content.
        served: What is served, see `place_of`.
        file: Where to write it instead.

    Raises:
        DataError: `file` cannot be written. A folder of somebody else's is no error.
    """
    path = file or place_of(served)
    notice(f"from a login node: {endpoint.tunnel}")
    try:
        with writing(path):
            write(endpoint, path)
    except DataError as error:
        if file is not None:
            raise
        notice(f"{error}\n  or name a file with --endpoint, for 'mpidl query' to find this server")
    try:
        yield
    finally:
        _remove(endpoint, path)


def write(endpoint: Endpoint, path: Path) -> None:
    """Write it as a whole, for the owner alone from its first byte on.

    Raises:
        OSError: The file system refuses.
    """
    partial = partial_path(path)
    partial.unlink(missing_ok=True)  # of a server that was killed
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(endpoint), indent=2) + b"\n")
        publish(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _remove(endpoint: Endpoint, path: Path) -> None:
    """Remove it, unless another server has taken its place."""
    with suppress(OSError, DataError, ConfigError):
        if read(path) == endpoint:
            path.unlink()


def read(path: Path) -> Endpoint:
    """Read one.

    Raises:
        ConfigError: There is none: no server runs.
        DataError: It cannot be read, or is none.
    """
    remedy = "start the server again"
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            "there is no such file: no server runs there, or it is still starting",
            where=str(path),
            remedy="start one with 'mpidl serve' (SLURM: sbatch scripts/slurm/serve.sbatch), name "
            "the file that it was given as --endpoint, or wait for it with --wait",
        ) from error
    except OSError as error:
        raise read_error(error, path, remedy) from error
    try:
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        return msgspec.json.decode(content, type=Endpoint)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        what = f"is no {FILE}: {wrap(error, 'reading').what}"
        raise DataError(what, where=str(path), remedy=remedy) from error
