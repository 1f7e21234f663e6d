"""Load over gRPC: questions about models, and clients for measuring, one connection each."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from mpidl.errors import ConfigError, PlatformError
from mpidl.extras import load_extra
from mpidl.serving.client import LOOK, Address
from mpidl.serving.load import OK
from mpidl.serving.tensors import NAMES, TensorSpec, encode_raw
from mpidl.serving.wire import SERVICE, load_messages

FOR = "load over gRPC"
MOST_ANSWER = 1 << 28  # bytes
# Statuses by the words of a report; others are called by their names
_WORDS = {"OK": OK, "DEADLINE_EXCEEDED": "timeout"}
_REFUSED = ("NOT_FOUND", "INVALID_ARGUMENT", "UNIMPLEMENTED", "FAILED_PRECONDITION")


def _options() -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", MOST_ANSWER),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),  # a connection of its own for each client
    ]


class GrpcClient:
    """Asks a server about its models.

    Args:
        address: Of gRPC.
        timeout: Seconds for an answer.
    """

    def __init__(self, address: Address, timeout: float) -> None:
        self.where = f"grpc://{address.text}"
        self._timeout = timeout
        self._grpc = load_extra("grpc", FOR)
        self._messages = load_messages()
        self._channel = self._grpc.insecure_channel(address.text, _options())

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def models(self) -> list[str]:
        """Names of the models that take requests.

        Raises:
            PlatformError: No server answers.
        """
        found = self._ask("RepositoryIndex", ready=True)
        return list(dict.fromkeys(model.name for model in found.models))

    def tensors(self, name: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """The inputs and the outputs of a model.

        Raises:
            ConfigError: The server has no such model.
            PlatformError: No server answers.
        """
        about = self._ask("ModelMetadata", name=name)
        inputs, outputs = (
            tuple(TensorSpec(t.name, t.datatype, tuple(t.shape[1:])) for t in tensors)
            for tensors in (about.inputs, about.outputs)
        )
        return inputs, outputs

    def _ask(self, method: str, **fields: Any) -> Any:
        """The answer to a call."""
        answer = getattr(self._messages, f"{method}Response")
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        request = getattr(self._messages, f"{method}Request")(**fields)
        with self._errors():
            return call(request, timeout=self._timeout, wait_for_ready=False)

    @contextmanager
    def _errors(self) -> Any:
        try:
            yield
        except self._grpc.RpcError as error:
            code, text = error.code().name, str(error.details())[:2000]
            if code in _REFUSED:
                what = f"the server says: {text}"
                raise ConfigError(what, where=self.where, remedy=LOOK) from error
            what = f"no server answers: {code}, {text}"
            remedy = "see whether it still runs (squeue), and name the port of gRPC"
            raise PlatformError(what, where=self.where, remedy=remedy) from error


class Connection:
    """Sends one request after the other.

    Args:
        address: Of the server.
        message: The request, of `encode`.
        timeout: Seconds for each.
    """

    def __init__(self, address: Address, message: bytes, timeout: float) -> None:
        self._address = address
        self._message = message
        self._timeout = timeout
        self._channel: Any = None
        self._call: Any = None

    async def send(self) -> str:
        """What has become of a request: OK, `timeout`, or the name of a status of gRPC."""
        if self._call is None:
            aio = load_extra("grpc.aio", FOR)
            self._channel = aio.insecure_channel(self._address.text, _options())
            # bytes: measured is the server, not the parsing of its answers here
            self._call = self._channel.unary_unary(f"/{SERVICE}/ModelInfer")
        call = self._call(self._message, timeout=self._timeout)
        code: str = (await call.code()).name
        return _WORDS.get(code, code)

    async def close(self) -> None:
        """Hang up."""
        if self._channel is not None:
            await self._channel.close()


class Grpc:
    """How load is made over gRPC."""

    PORT = 8001

    @staticmethod
    def ask(address: Address, timeout: float) -> GrpcClient:
        """A client for questions about models."""
        return GrpcClient(address, timeout)

    @staticmethod
    def encode(address: Address, model: str, inputs: Mapping[str, NDArray[Any]]) -> bytes:
        """An inference request, tensors as bytes."""
        request = load_messages().ModelInferRequest(model_name=model)
        for name, array in inputs.items():
            request.inputs.add(name=name, datatype=NAMES[array.dtype], shape=array.shape)
            request.raw_input_contents.append(encode_raw(array))
        found: bytes = request.SerializeToString()
        return found

    connect = Connection
