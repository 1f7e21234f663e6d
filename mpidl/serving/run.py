"""A server from its start to its end: rank 0 speaks to clients, the other ranks compute."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
import ssl
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec

from mpidl.comm.context import Context
from mpidl.errors import STOPPED, ConfigError, PlatformError, notice
from mpidl.extras import load_extra
from mpidl.security.journal import Task, audited
from mpidl.serving import endpoint
from mpidl.serving.access import Door, open_door
from mpidl.serving.channel import opened
from mpidl.serving.dispatch import Dispatcher
from mpidl.serving.grpc import make_server
from mpidl.serving.http import Application
from mpidl.serving.http_access import make_protocol
from mpidl.serving.link import Link, MpiLink, ThreadLink, work
from mpidl.serving.repository import Repository
from mpidl.serving.server import Server
from mpidl.serving.settings import Settings, load_settings
from mpidl.serving.tls import refuse_old_tls
from mpidl.train.signals import SIGNALS

CONNECTIONS = 4096
COUNTING = 60.0  # seconds between counts of answers in the audit log
SWITCH = 2e-4  # seconds: the thread of the link must not wait long for the event loop


class Options(msgspec.Struct, frozen=True):
    """Of the command line.

    Attributes:
        path: models.toml, a run folder or a checkpoint.
        host: To listen on.
        http_port: For REST; 0: any that is free.
        grpc_port: For gRPC; 0: any that is free.
        backend: Where ranks compute.
        identity: Of the server, in place of what models.toml says; "": that.
        endpoint: The file that says where the server is; None: endpoint.json beside the model.
        channel: A folder of requests as files; None: there is none.
    """

    path: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    backend: str = "auto"
    identity: str = ""
    endpoint: Path | None = None
    channel: Path | None = None

    def load(self) -> Settings:
        """The settings.

        Raises:
            ConfigError: They are wrong, or everybody on the network could come.
        """
        settings = load_settings(self.path)
        if self.identity:
            security = msgspec.structs.replace(settings.security, identity=self.identity)
            settings = msgspec.structs.replace(settings, security=security)
        if not settings.security.identity and not _is_loopback(self.host):
            raise ConfigError(
                f"{self.host!r} can be reached from other machines, and a server without an "
                "identity neither encrypts nor asks who is there: anybody on the network could "
                "use, load and unload its models",
                where="--host",
                remedy="use 127.0.0.1 and an SSH tunnel (ssh -L), or give the server an identity "
                "(--identity, docs/serving-security.md)",
            )
        return settings


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(context: Context, options: Options) -> int:
    """Serve until a signal says to stop. Collective.

    Returns:
        The exit status.

    Raises:
        MpidlError: The settings are wrong, or a model cannot be loaded.
    """
    with audited("serve", context, options.path) as task:
        return _serve(context, options, task)


def _serve(context: Context, options: Options, task: Task) -> int:
    with context.fail_together("reading the settings"):
        settings = options.load() if context.is_root else None
        if settings is not None:
            if settings.security.identity:
                refuse_old_tls()
            for module in ("grpc", "google.protobuf", "uvicorn", "httptools", "uvloop"):
                load_extra(module, "serving")
    error: Exception | None = None
    if settings is None:
        for number in (*SIGNALS, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # rank 0 says when to stop
        whole = work(context)
    else:
        sys.setswitchinterval(SWITCH)
        whole, error = _run_root(context, options, settings, task)
    if not whole:
        task.journal.close()
        # MPI cannot be left in order where ranks are lost
        sys.stdout.flush()
        os._exit(STOPPED)
    context.raise_on_all(error, "serving")
    return STOPPED


def _run_root(
    context: Context, options: Options, settings: Settings, task: Task
) -> tuple[bool, Exception | None]:
    """Rank 0.

    Returns:
        Whether all ranks are still there, and the error that has ended the server.
    """
    link: Link = MpiLink(context) if context.size > 1 else ThreadLink(context)
    loop = load_extra("uvloop", "serving").new_event_loop
    error = None
    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(_run(link, options, settings, task))
    except Exception as caught:
        error = caught
    return link.whole, error


async def _run(link: Link, options: Options, settings: Settings, task: Task) -> None:
    """Load the models, and serve."""
    stop = asyncio.Event()
    for number in (*SIGNALS, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    dispatcher = Dispatcher(settings.server, link)
    try:
        door = open_door(settings.security, task.tell)
        repository = Repository(options.load, dispatcher, options.backend, task)
        for name in settings.models:
            await repository.load(name)
        await _listen(Server(repository, dispatcher, door.access), options, door, stop)
        repository.tell_counts()
    finally:
        dispatcher.close()


async def _listen(server: Server, options: Options, door: Door, stop: asyncio.Event) -> None:
    """Answer clients until `stop`, then drain."""
    http, listener = _http_server(server, options, door.context)
    try:
        address = f"{options.host}:{options.grpc_port}"
        rpc, grpc_port = make_server(server, address, door.credentials)
    except RuntimeError as error:
        raise _in_use(options, "--grpc-port") from error
    await rpc.start()
    serving = asyncio.create_task(http.serve(sockets=[listener]))
    http_port = listener.getsockname()[1]
    models = list(server.repository.settings.models)
    secure = "s" if door.context else ""
    print(
        f"serving {', '.join(models)} on "
        f"http{secure}://{options.host}:{http_port} and grpc{secure}://{options.host}:{grpc_port}",
        flush=True,
    )
    waiting = asyncio.create_task(stop.wait())
    counting = asyncio.create_task(_tell_counts(server))
    found = endpoint.describe(
        options.host, http_port, grpc_port, models, door.fingerprint, door.token_file
    )
    with endpoint.announced(found, options.path, options.endpoint):
        async with opened(server, options.channel):
            await asyncio.wait((waiting, serving), return_when=asyncio.FIRST_COMPLETED)
    counting.cancel()
    notice("stopping: no new requests are taken, those that wait are answered")
    if not await server.drain():
        notice("some requests were not answered within server.drain_timeout", "error")
    await rpc.stop(1.0)
    http.should_exit = True
    await serving


async def _tell_counts(server: Server) -> None:
    """Tell the audit log now and then how much was answered."""
    while True:
        await asyncio.sleep(COUNTING)
        server.repository.tell_counts()


def _http_server(
    server: Server, options: Options, context: ssl.SSLContext | None
) -> tuple[Any, socket.socket]:
    """The server of REST, and its socket."""
    uvicorn = load_extra("uvicorn", "serving over REST")
    try:
        listener = socket.create_server(
            (options.host, options.http_port),
            family=socket.AF_INET6 if ":" in options.host else socket.AF_INET,
            backlog=1024,
        )
    except OSError as error:
        raise _in_use(options, "--http-port") from error
    config = uvicorn.Config(
        Application(server),
        http=make_protocol(),
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
    config.load()
    config.ssl = context
    made = uvicorn.Server(config)
    made.capture_signals = nullcontext  # signals are ours
    return made, listener


def _in_use(options: Options, setting: str) -> PlatformError:
    return PlatformError(
        f"cannot listen on {options.host}",
        where=setting,
        remedy=f"choose another {setting}, or 0 for any that is free",
    )
