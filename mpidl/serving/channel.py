"""Requests and answers as files, where the node of the server cannot be reached by TCP.

FOLDER/in/MODEL/NAME.npz is a request: the inputs by name. Its answer is FOLDER/out/MODEL/NAME.npz,
or NAME.json with an error; the request is removed behind it, so that a server that starts again
goes on with what is left. FOLDER/models.json says which models there are.
"""

from __future__ import annotations

import asyncio
import os
import stat
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mpidl.errors import DataError, notice, wrap
from mpidl.files import write_atomically, write_file, writing
from mpidl.serving.client import Model
from mpidl.serving.errors import ServingError, TooLarge, Unavailable
from mpidl.serving.query import DAMAGED, Arrays, convert, fit
from mpidl.serving.server import InferRequest, Server

MODELS = "models.json"
POLL = 0.1  # seconds
MOST_FILES = 16  # that are answered at once; the others wait in the folder
MOST_BATCHES = 64  # of all files that wait in the queue of the server
ATTEMPTS = 3  # before a request that the server cannot answer now is answered with the error
SUFFIX = ".npz"


class Channel:
    """Answers the files of a folder.

    Args:
        server: Computes the answers.
        folder: Is made where it is missing.

    Raises:
        DataError: The folder cannot be written.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._known = b""
        self._tasks: dict[Path, asyncio.Task[None]] = {}
        self._attempts: dict[Path, int] = {}
        self._batches = asyncio.Semaphore(MOST_BATCHES)
        self._said = ""
        self._prepare()

    def _prepare(self) -> None:
        """Make the folders, and say which models there are."""
        models = describe_models(self._server)
        with writing(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for kind in ("in", "out"):
                for model in models:
                    (self._folder / kind / model.name).mkdir(0o700, parents=True, exist_ok=True)
            text = msgspec.json.encode(models)
            if text != self._known:
                write_file(self._folder / MODELS, text)
        self._known = text

    async def run(self) -> None:
        """Answer what comes, until canceled."""
        while True:
            try:
                await asyncio.to_thread(self._prepare)
                for path, model in await asyncio.to_thread(self._list):
                    if len(self._tasks) < MOST_FILES and path not in self._tasks:
                        self._start(path, model)
                self._said = ""
            except (OSError, DataError) as error:  # a file system may come back
                if str(error) != self._said:
                    self._said = str(error)
                    notice(f"the channel {self._folder}: {error}", "error")
            await asyncio.sleep(POLL)

    def _list(self) -> list[tuple[Path, str]]:
        """Requests that are there, the oldest first, and their models."""
        found = []
        for model in msgspec.json.decode(self._known, type=list[Model]):
            with os.scandir(self._folder / "in" / model.name) as entries:
                for entry in entries:
                    if entry.name.endswith(SUFFIX) and not entry.name.startswith("."):
                        with suppress(FileNotFoundError):
                            made = entry.stat(follow_symlinks=False).st_mtime_ns
                            found.append((made, Path(entry.path), model.name))
        return [(path, model) for _, path, model in sorted(found)]

    def _start(self, path: Path, model: str) -> None:
        task = asyncio.create_task(self._answer(path, model))
        self._tasks[path] = task
        task.add_done_callback(lambda _: self._tasks.pop(path))

    async def _answer(self, path: Path, model: str) -> None:
        """Answer one request; it stays where the server cannot answer it now."""
        out = self._folder / "out" / model / path.name
        try:
            try:
                outputs = await self._compute(path, model)
            except Unavailable:
                self._attempts[path] = self._attempts.get(path, 0) + 1
                if self._server.draining or self._attempts[path] < ATTEMPTS:
                    return
                raise
            await asyncio.to_thread(_write, out, outputs)
        except Exception as error:
            said = wrap(error, "answering a request")
            text = said.text if isinstance(said, ServingError) else str(said)
            body = msgspec.json.encode({"error": text})
            with suppress(OSError):
                await asyncio.to_thread(write_file, out.with_suffix(".json"), body)
        self._attempts.pop(path, None)
        with suppress(OSError):
            path.unlink()

    async def _compute(self, path: Path, model: str) -> Arrays:
        """The outputs for all samples of a file."""
        most = self._server.settings.max_request_bytes
        size = await asyncio.to_thread(check_archive, path, most)
        self._server.reserve(size)
        try:
            arrays = await asyncio.to_thread(_read, path)
            about = describe_model(self._server, model)
            inputs, rows = fit(arrays, about, path), about.max_batch_size
            total = len(next(iter(inputs.values())))

            async def send(low: int) -> Arrays:
                batch = [
                    (s.name, convert(inputs[s.name][low : low + rows], s)) for s in about.inputs
                ]
                async with self._batches:
                    answer = await self._server.infer(InferRequest(model, "", "", batch))
                return {spec.name: array for spec, array in answer.outputs}

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(send(low)) for low in range(0, total, rows)]
            parts = [task.result() for task in tasks]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._server.release(size)

    async def finish(self) -> None:
        """Wait for the requests that are being answered."""
        if self._tasks:
            _, late = await asyncio.wait(
                list(self._tasks.values()), timeout=self._server.settings.drain_timeout
            )
            for task in late:
                task.cancel()


@asynccontextmanager
async def opened(server: Server, folder: Path | None) -> AsyncIterator[None]:
    """Answer the files of a folder for the time of a block; what is left then stays there.

    Args:
        server: Computes the answers.
        folder: None: nothing is done.

    Raises:
        DataError: The folder cannot be written.
    """
    if folder is None:
        yield
        return
    channel = Channel(server, folder)
    task = asyncio.create_task(channel.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await channel.finish()


def describe_model(server: Server, name: str) -> Model:
    """What a client needs to know of a model.

    Raises:
        ServingError: It is not loaded.
    """
    version = server.repository.find(name, "")
    about, ranks = version.about, sum(worker.alive for worker in version.lane.workers)
    most = version.settings.max_batch_size
    return Model(name, tuple(about.inputs), tuple(about.outputs), most, max(1, ranks))


def describe_models(server: Server) -> list[Model]:
    """All models that are loaded."""
    found = []
    for name in server.repository.settings.models:
        with suppress(ServingError):
            found.append(describe_model(server, name))
    return found


def check_archive(path: Path, most: int) -> int:
    """The bytes of the arrays of a request, before any is read.

    Args:
        path: The file.
        most: Bytes at most.

    Raises:
        TooLarge: It has more.
        DataError: It is no archive, or no file.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError("it is a link or a folder")
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except DAMAGED as error:
        raise _malformed(path, error) from error
    if size > most:
        what = f"the request has {size} bytes, more than {most} (max_request_bytes)"
        raise TooLarge(what, remedy="send fewer samples at once")
    return size


def _read(path: Path) -> Arrays:
    """The arrays of a request."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except DAMAGED as error:
        raise _malformed(path, error) from error


def _malformed(path: Path, error: Exception) -> DataError:
    return DataError(
        f"cannot be read: {error}",
        where=path.name,
        remedy="save the inputs by name with numpy.savez under another name, then rename the file",
    )


def _write(path: Path, outputs: dict[str, Any]) -> None:
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    with write_atomically(path) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **outputs)
