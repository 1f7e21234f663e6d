"""The server, whatever it is reached by: requests and answers of the protocol as plain objects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import mpidl
from mpidl.serving.access import Access, OpenAccess
from mpidl.serving.describe import describe_config, describe_metadata
from mpidl.serving.dispatch import Dispatcher
from mpidl.serving.errors import InvalidRequest, ServingError, TooLarge, Unavailable
from mpidl.serving.queue import Pending
from mpidl.serving.repository import Repository, Version
from mpidl.serving.tensors import BYTES, TensorSpec

EXTENSIONS = (
    "model_repository",
    "model_configuration",
    "statistics",
    "binary_tensor_data",
    "generate",
)
MOST_INPUTS = 64


class InferRequest(msgspec.Struct):
    """A request for inference.

    Attributes:
        model: Name.
        version: Number, or "" for the latest.
        id: Of the client; comes back in the answer.
        inputs: Name and tensor of each input, (rows, ...).
        outputs: Names of those that are wanted; None: all.
        priority: See `Pending`.
        timeout: Microseconds; 0: as the settings say.
    """

    model: str
    version: str
    id: str
    inputs: list[tuple[str, NDArray[Any]]]
    outputs: list[str] | None = None
    priority: int = 0
    timeout: int = 0


class InferResponse(msgspec.Struct):
    """The answer.

    Attributes:
        model: Name.
        version: That has answered.
        id: Of the client.
        outputs: Tensors, (rows, ...).
    """

    model: str
    version: str
    id: str
    outputs: list[tuple[TensorSpec, NDArray[Any]]]


class Server:
    """Answers requests.

    Args:
        repository: The models.
        dispatcher: To the ranks that compute.
        access: Who may ask; None: everybody.

    Attributes:
        draining: Whether no new requests are taken.
        pending_bytes: Of the requests that are being read, waiting or answered.
    """

    def __init__(
        self, repository: Repository, dispatcher: Dispatcher, access: Access | None = None
    ) -> None:
        self.access = access or OpenAccess()
        self.repository = repository
        self.dispatcher = dispatcher
        self.settings = repository.settings.server
        self.draining = False
        self.pending_bytes = 0
        self.started = time.time()

    # --- state ---
    @property
    def ready(self) -> bool:
        """Whether all models take requests."""
        alive = any(worker.alive for worker in self.dispatcher.workers)
        return alive and not self.draining and self.repository.ready

    def model_ready(self, name: str, version: str = "") -> bool:
        """Whether a version takes requests.

        Raises:
            NotFound: There is none.
        """
        try:
            lane = self.repository.find(name, version).lane
        except Unavailable:
            return False
        return not self.draining and any(worker.alive for worker in lane.workers)

    def metadata(self) -> dict[str, Any]:
        """Of the server."""
        return {"name": "mpidl", "version": mpidl.__version__, "extensions": list(EXTENSIONS)}

    def model_metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """Of a model.

        Raises:
            ServingError: There is none, or it is not loaded.
        """
        found = self.repository.find(name, version)
        numbers = sorted((v.number for v in self.repository.versions(name)), key=int)
        return describe_metadata(found, numbers)

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """The configuration of a model, in Triton's fields.

        Raises:
            ServingError: There is none, or it is not loaded.
        """
        return describe_config(self.repository.find(name, version))

    def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """Of one model, or of all.

        Raises:
            ServingError: There is none, or it is not loaded.
        """
        return [
            found.stats.to_dict(found.model, found.number, found.about.bytes)
            for found in self.repository.versions(name, version)
        ]

    # --- memory ---
    def reserve(self, size: int) -> None:
        """Count bytes of a request that is read.

        Raises:
            Unavailable: Too many requests are there already.
        """
        if self.pending_bytes + size > self.settings.max_pending_bytes:
            raise Unavailable(
                f"the server holds {self.pending_bytes} bytes of requests already "
                f"(max_pending_bytes is {self.settings.max_pending_bytes})",
                remedy="try later",
            )
        self.pending_bytes += size

    def release(self, size: int) -> None:
        """The request is answered."""
        self.pending_bytes -= size

    def check_size(self, size: int) -> None:
        """Refuse a request that is too large.

        Raises:
            TooLarge: It is.
        """
        most = self.settings.max_request_bytes
        if size > most:
            what = f"the request has more than {most} bytes (max_request_bytes)"
            raise TooLarge(what, remedy="send fewer samples at once")

    # --- inference ---
    async def infer(self, request: InferRequest) -> InferResponse:
        """The outputs for a request.

        Raises:
            ServingError: It cannot be answered.
        """
        if self.draining:
            raise Unavailable("the server is stopping", remedy="ask another one")
        version = self.repository.find(request.model, request.version)
        start = time.monotonic_ns()
        with counted(version, start):
            specs = choose_outputs(version, request.outputs)
            columns = check_inputs(version, request.inputs)
            check_queueing(request)
            arrays = await self._wait(version, request, columns)
            found = dict(zip((spec.name for spec in version.about.outputs), arrays, strict=True))
            outputs = [(spec, found[spec.name]) for spec in specs]
        version.stats.add_success(time.monotonic_ns() - start)
        return InferResponse(version.model, version.number, request.id, outputs)

    async def _wait(
        self, version: Version, request: InferRequest, columns: list[NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Let a request wait in the queue, and for its batch."""
        answer: asyncio.Future[list[NDArray[Any]]] = asyncio.get_running_loop().create_future()

        def finish(result: list[NDArray[Any]] | ServingError) -> None:
            version.users -= 1
            if answer.cancelled():
                return
            if isinstance(result, ServingError):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        rows = len(columns[0])
        pending = Pending(columns, rows, finish, request.priority, request.timeout * 1000)
        self.dispatcher.submit(version.lane, pending)
        version.users += 1
        try:
            return await answer
        except asyncio.CancelledError:
            if pending.waiting:
                version.users -= 1
            self.dispatcher.cancel(version.lane, pending)
            raise

    async def drain(self) -> bool:
        """Take no new requests, and wait for the others.

        Returns:
            Whether all were answered within drain_timeout.
        """
        self.draining = True
        try:
            async with asyncio.timeout(self.settings.drain_timeout):
                await self.repository.wait_idle(self.repository.versions())
        except TimeoutError:
            return False
        return True


@contextmanager
def counted(version: Version, start: int) -> Iterator[None]:
    """Count a request that fails."""
    try:
        yield
    except ServingError as error:
        version.stats.add_failure(error.code, time.monotonic_ns() - start)
        raise


def choose_outputs(version: Version, wanted: list[str] | None) -> list[TensorSpec]:
    """The outputs that a request wants.

    Raises:
        InvalidRequest: The model has no such output.
    """
    specs = {spec.name: spec for spec in version.about.outputs}
    for name in wanted or ():
        if name not in specs:
            raise InvalidRequest(
                f"unexpected inference output {name[:80]!r} for model {version.model!r}",
                remedy=f"it has {', '.join(specs)}",
            )
    return [specs[name] for name in dict.fromkeys(wanted)] if wanted else list(specs.values())


def check_queueing(request: InferRequest) -> None:
    """Refuse impossible parameters.

    Raises:
        InvalidRequest: They are.
    """
    if not 0 <= request.priority <= 1 << 32:
        raise InvalidRequest("the parameter priority must be a whole number of at least 0")
    if not 0 <= request.timeout <= 1 << 50:
        raise InvalidRequest("the parameter timeout must be microseconds of at least 0")
    if len(request.id) > 1024:
        raise InvalidRequest("the id has more than 1024 characters")


def check_inputs(version: Version, inputs: list[tuple[str, NDArray[Any]]]) -> list[NDArray[Any]]:
    """The inputs of a request in the order and the dtypes of the model.

    Raises:
        InvalidRequest: They do not fit the model.
    """
    about, given = version.about, dict(inputs)
    if len(given) != len(inputs) or set(given) != {spec.name for spec in about.inputs}:
        names = ", ".join(repr(name[:80]) for name, _ in inputs[:MOST_INPUTS])
        raise InvalidRequest(
            f"expected {len(about.inputs)} inputs but got {len(inputs)} inputs ({names}) for "
            f"model {version.model!r}",
            remedy=f"it takes {', '.join(spec.name for spec in about.inputs)}",
        )
    first, most = given[about.inputs[0].name], version.settings.max_batch_size
    rows = len(first) if first.ndim else 0
    if not 1 <= rows <= most:
        raise InvalidRequest(
            f"inference request batch-size must be 1 to {most} for {version.model!r}, got {rows}",
            remedy="send several requests",
        )
    return [_check_input(spec, given[spec.name], rows, version) for spec in about.inputs]


def _check_input(
    spec: TensorSpec, array: NDArray[Any], rows: int, version: Version
) -> NDArray[Any]:
    """One input."""
    model, wanted = version.model, (rows, *spec.shape)
    if array.shape != wanted:
        raise InvalidRequest(
            f"unexpected shape for input {spec.name!r} for model {model!r}: expected "
            f"{[-1, *spec.shape]}, got {list(array.shape)}"
        )
    tokens = version.about.vocabulary
    kinds = "iu" if tokens else "iuf"
    numbers = array.dtype.kind in kinds or (not tokens and array.dtype.name == "bfloat16")
    if array.dtype == object or not numbers:
        what = BYTES if array.dtype == object else array.dtype.name
        raise InvalidRequest(
            f"input {spec.name!r} of model {model!r} takes {spec.datatype}, which {what} cannot be "
            "converted to"
        )
    if tokens and array.size and not (int(array.min()) >= 0 and int(array.max()) < tokens):
        raise InvalidRequest(
            f"input {spec.name!r} of model {model!r} takes tokens from 0 to {tokens - 1}"
        )
    with np.errstate(over="ignore"):
        return array if array.dtype == spec.dtype else array.astype(spec.dtype)
