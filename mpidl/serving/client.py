"""A client of the protocol over REST: tensors travel as bytes. Needs no MPI and no gRPC.

Source: Open Inference Protocol 2 and Triton's "Binary Tensor Data Extension".
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import quote

import msgspec
from numpy.typing import NDArray

from mpidl.errors import ConfigError, PlatformError
from mpidl.serving.errors import ServingError
from mpidl.serving.login import Login, PinnedConnection
from mpidl.serving.tensors import MOST_AXES, NAMES, TensorSpec, decode_raw, encode_raw

HEADER_LENGTH = "Inference-Header-Content-Length"
TIMEOUT = 60.0  # seconds without a byte
MOST_ANSWER = 1 << 30
BUSY = 503
PAUSES = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0)  # seconds before the same request is sent again
LOOK = "see which models it serves, and what they take: its page /ui shows them"
LOGIN = "show a token with --token, or a certificate with --identity, that has that right"
T = TypeVar("T")
Shape = Annotated[list[int], msgspec.Meta(max_length=MOST_AXES)]


class _Listed(msgspec.Struct):
    name: str


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: Shape


class _Metadata(msgspec.Struct):
    inputs: list[_Tensor]
    outputs: list[_Tensor]


class _Config(msgspec.Struct):
    max_batch_size: Annotated[int, msgspec.Meta(ge=1)]
    instance_group: list[dict[str, Any]] = []


class _Size(msgspec.Struct):
    binary_data_size: Annotated[int, msgspec.Meta(ge=0)]


class _Output(_Tensor):
    parameters: _Size


class _Answer(msgspec.Struct):
    outputs: list[_Output]


class _Error(msgspec.Struct):
    error: str


class Address(msgspec.Struct, frozen=True):
    """Where a server listens.

    Attributes:
        host: Name or address.
        port: Of REST, or of gRPC.
    """

    host: str
    port: int

    @property
    def text(self) -> str:
        """As URLs have it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Model(msgspec.Struct, frozen=True):
    """What a client knows of a model.

    Attributes:
        name: Its name.
        inputs: That it takes.
        outputs: That it gives.
        max_batch_size: Samples of a request at most.
        ranks: That compute it.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    ranks: int


def encode_request(inputs: Mapping[str, NDArray[Any]]) -> tuple[bytes, int]:
    """The body of an inference request, tensors as bytes, and the bytes of JSON in front.

    Args:
        inputs: Name and tensor of each input, (rows, ...), of a dtype of the protocol.
    """
    tails = [encode_raw(array) for array in inputs.values()]
    head = msgspec.json.encode(
        {
            "parameters": {"binary_data_output": True},
            "inputs": [
                {
                    "name": name,
                    "datatype": NAMES[array.dtype],
                    "shape": array.shape,
                    "parameters": {"binary_data_size": len(tail)},
                }
                for (name, array), tail in zip(inputs.items(), tails, strict=True)
            ],
        }
    )
    return b"".join([head, *tails]), len(head)


def model_path(name: str) -> str:
    """The path of a model in the protocol."""
    return f"/v2/models/{quote(name, safe='')}"


class Client:
    """One connection to a server; it is opened again where it breaks.

    Args:
        host: Of the server.
        port: Of REST.
        timeout: Seconds without a byte, after which the server counts as gone.
        login: What to show to a server that asks who is there.
        fingerprint: Of the certificate of such a server; "": it does not ask.
    """

    def __init__(
        self,
        host: str,
        port: int,
        timeout: float = TIMEOUT,
        *,
        login: Login | None = None,
        fingerprint: str = "",
    ) -> None:
        self.where = f"http{'s' if fingerprint else ''}://{Address(host, port).text}"
        self._connection: http.client.HTTPConnection
        self._headers: dict[str, str] = {}
        if fingerprint:
            login = login or Login()
            self._headers = login.headers
            self._connection = PinnedConnection(host, port, timeout, login.context, fingerprint)
        else:
            self._connection = http.client.HTTPConnection(host, port, timeout=timeout)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        """Nothing is opened yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()

    def is_ready(self) -> bool:
        """Whether the server takes requests.

        Raises:
            PlatformError: No server answers.
        """
        return self._send("GET", "/v2/health/ready", None, {})[0] == http.client.OK

    def models(self) -> list[str]:
        """Names of the models that take requests.

        Raises:
            PlatformError: No server answers.
        """
        text, _ = self._ask("POST", "/v2/repository/index", b'{"ready": true}')
        return list(dict.fromkeys(one.name for one in self._decode(text, list[_Listed])))

    def tensors(self, name: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """The inputs and the outputs of a model.

        Raises:
            ConfigError: The server has no such model.
            PlatformError: No server answers.
        """
        about = self._decode(self._ask("GET", model_path(name))[0], _Metadata)
        inputs, outputs = (
            tuple(TensorSpec(t.name, t.datatype, tuple(t.shape[1:])) for t in tensors)
            for tensors in (about.inputs, about.outputs)
        )
        return inputs, outputs

    def model(self, name: str) -> Model:
        """What the model takes and gives, and how it is served.

        Raises:
            ConfigError: The server has no such model.
            PlatformError: No server answers.
        """
        inputs, outputs = self.tensors(name)
        config = self._decode(self._ask("GET", f"{model_path(name)}/config")[0], _Config)
        counts = [group.get("count") for group in config.instance_group]
        ranks = sum(count for count in counts if isinstance(count, int))
        return Model(name, inputs, outputs, config.max_batch_size, max(1, ranks))

    def infer(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs for some samples.

        Args:
            name: Of the model.
            inputs: Name and tensor of each input, (rows, ...), of a dtype of the protocol.

        Raises:
            ConfigError: The server refuses the request.
            PlatformError: No server answers, or its answer is malformed.
        """
        request, head = encode_request(inputs)
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(head)}
        body, size = self._ask("POST", f"{model_path(name)}/infer", request, headers)
        return self._read_outputs(body, size)

    def _read_outputs(self, body: bytes, size: int | None) -> dict[str, NDArray[Any]]:
        """The tensors of an answer."""
        if size is None or not 0 <= size <= len(body):
            raise self.malformed(f"its {HEADER_LENGTH} is {size}")
        view = memoryview(body)
        found, rest = {}, view[size:]
        for one in self._decode(view[:size], _Answer).outputs:
            count = one.parameters.binary_data_size
            if count > len(rest):
                raise self.malformed(f"the output {one.name[:80]!r} is cut off")
            try:
                found[one.name] = decode_raw(one.name, one.datatype, one.shape, rest[:count])
            except ServingError as error:
                raise self.malformed(error.what) from error
            rest = rest[count:]
        return found

    def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> tuple[bytes, int | None]:
        """The body of an answer, and the bytes of JSON in it; a busy server is asked again."""
        status, text, size = self._send(method, path, body, headers)
        for pause in PAUSES:
            if status != BUSY:
                break
            time.sleep(pause)
            status, text, size = self._send(method, path, body, headers)
        if status == http.client.OK:
            return text, size
        try:
            what = msgspec.json.decode(text, type=_Error).error[:2000]
        except msgspec.MsgspecError:
            what = f"HTTP status {status}"
        if status >= http.client.INTERNAL_SERVER_ERROR:
            remedy = "try later, or look at what the server has printed"
            raise PlatformError(f"the server says: {what}", where=self.where, remedy=remedy)
        remedy = LOGIN if status in (401, 403) else LOOK
        raise ConfigError(f"the server says: {what}", where=self.where, remedy=remedy)

    def _send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes, int | None]:
        """Status, body, and bytes of JSON in the body."""
        try:
            try:
                answer = self._exchange(method, path, body, headers)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # a server may close a connection that was idle, or was refused
                self._connection.close()
                answer = self._exchange(method, path, body, headers)
            text = answer.read(MOST_ANSWER + 1)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise PlatformError(
                f"no server answers: {error or type(error).__name__}",
                where=self.where,
                remedy="see whether it still runs (squeue); one that was killed leaves its "
                "endpoint.json behind. Start it again, or wait for it with --wait",
            ) from error
        if len(text) > MOST_ANSWER:
            self._connection.close()
            raise self.malformed(f"it has more than {MOST_ANSWER} bytes")
        size = answer.headers.get(HEADER_LENGTH, "")
        return answer.status, text, int(size) if size.isdecimal() and len(size) < 16 else None

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        self._connection.request(method, path, body, {**headers, **self._headers})
        return self._connection.getresponse()

    def _decode(self, text: bytes | memoryview, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(text, type=kind)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise self.malformed(str(error)[:300]) from error

    def malformed(self, what: str) -> PlatformError:
        """The error for an answer that is none."""
        return PlatformError(
            f"the answer is not one of a server of the Open Inference Protocol: {what}",
            where=self.where,
            remedy="see which program listens on that port",
        )
