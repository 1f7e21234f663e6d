"""The protocol over gRPC: a service of `grpc.aio`. Messages are parsed here, from their bytes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from mpidl.errors import wrap
from mpidl.extras import load_extra
from mpidl.serving.access import Access, Peer, sees
from mpidl.serving.errors import InvalidRequest, ServingError
from mpidl.serving.json_body import check_parameters, whole_number
from mpidl.serving.server import MOST_INPUTS, InferRequest, InferResponse, Server
from mpidl.serving.tensors import convert_numbers, decode_raw, encode_raw
from mpidl.serving.wire import SERVICE, load_messages

if TYPE_CHECKING:
    from mpidl.security.subject import Subject

CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
OPEN = ("ServerLive", "ServerReady")
STREAM_AHEAD = 64  # requests of a stream that are answered at once
CONCURRENT = 8192  # calls
Method = Callable[[Any], Awaitable[Any]]


def read_message(kind: Any, data: bytes) -> Any:
    """A message from its bytes.

    Raises:
        InvalidRequest: It is malformed.
    """
    try:
        return kind.FromString(data)
    except Exception as error:  # DecodeError, and others of its C library
        raise InvalidRequest(f"failed to parse the request: {str(error)[:200]}") from error


def _parameters(found: Any) -> dict[str, Any]:
    values = {}
    for name, value in found.items():
        which = value.WhichOneof("parameter_choice")
        values[name] = getattr(value, which) if which else None
    return values


def read_request(message: Any) -> InferRequest:
    """What a ModelInferRequest says.

    Raises:
        ServingError: It contradicts itself, or wants what the server does not have.
    """
    parameters = _parameters(message.parameters)
    check_parameters(parameters)
    raw = message.raw_input_contents
    if len(message.inputs) > MOST_INPUTS:
        raise InvalidRequest(f"more than {MOST_INPUTS} inputs")
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(raw)} tensors for {len(message.inputs)} inputs"
        )
    inputs = []
    for index, tensor in enumerate(message.inputs):
        if tensor.parameters:
            check_parameters(_parameters(tensor.parameters))
        if raw and tensor.HasField("contents") and tensor.contents.ListFields():
            what = "contents field must not be specified when using raw_input_contents for input "
            raise InvalidRequest(f"{what}{tensor.name[:80]!r}")
        shape = list(tensor.shape)
        if raw:
            array = decode_raw(tensor.name, tensor.datatype, shape, raw[index])
        else:
            array = _read_contents(tensor, shape)
        inputs.append((tensor.name, array))
    for output in message.outputs:
        if output.parameters:
            check_parameters(_parameters(output.parameters))
    return InferRequest(
        message.model_name,
        message.model_version,
        message.id,
        inputs,
        [output.name for output in message.outputs[:MOST_INPUTS]] or None,
        whole_number(parameters, "priority"),
        whole_number(parameters, "timeout"),
    )


def _read_contents(tensor: Any, shape: list[int]) -> Any:
    """A tensor in typed contents."""
    field = CONTENTS.get(tensor.datatype)
    if field is None:
        raise InvalidRequest(
            f"input {tensor.name[:80]!r}: {tensor.datatype[:20]!r} has no typed contents",
            remedy="use raw_input_contents",
        )
    if any(found.name != field for found, _ in tensor.contents.ListFields()):
        raise InvalidRequest(
            f"input {tensor.name[:80]!r} of {tensor.datatype} must have {field} alone"
        )
    numbers = getattr(tensor.contents, field)
    return convert_numbers(tensor.name, tensor.datatype, shape, numbers)


def check_right(access: Access, subject: Subject | None, name: str, request: Any) -> None:
    """Refuse a call that its subject may not make.

    Args:
        access: Of the server.
        subject: Who calls.
        name: Of the method.
        request: Its message.

    Raises:
        Forbidden: It may not.
    """
    if name == "ModelInfer":
        access.require(subject, "infer", request.model_name)
    elif name.startswith("RepositoryModel"):
        access.require(subject, "load", request.model_name)
    elif name == "ModelStatistics":
        access.require(subject, "metrics")
    elif name.startswith("Model") and not sees(access, subject, request.name):
        access.require(subject, "infer", request.name)


class Service:
    """The methods of the service.

    Args:
        server: The server.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.messages = load_messages()
        self._grpc = load_extra("grpc", "serving over gRPC")
        self._parse_dict = load_extra("google.protobuf.json_format", "serving").ParseDict

    def _make(self, name: str, tree: Any) -> Any:
        return self._parse_dict(tree, getattr(self.messages, name)())

    # --- state ---
    async def server_live(self, request: Any) -> Any:
        """Whether the server answers at all."""
        return self.messages.ServerLiveResponse(live=True)

    async def server_ready(self, request: Any) -> Any:
        """Whether all models take requests."""
        return self.messages.ServerReadyResponse(ready=self.server.ready)

    async def model_ready(self, request: Any) -> Any:
        """Whether a model takes requests."""
        ready = self.server.model_ready(request.name, request.version)
        return self.messages.ModelReadyResponse(ready=ready)

    async def server_metadata(self, request: Any) -> Any:
        """Name, version, extensions."""
        return self._make("ServerMetadataResponse", self.server.metadata())

    async def model_metadata(self, request: Any) -> Any:
        """Inputs and outputs of a model."""
        tree = self.server.model_metadata(request.name, request.version)
        return self._make("ModelMetadataResponse", tree)

    async def model_config(self, request: Any) -> Any:
        """The configuration of a model."""
        tree = self.server.model_config(request.name, request.version)
        return self._make("ModelConfigResponse", {"config": tree})

    async def model_statistics(self, request: Any) -> Any:
        """What models have done."""
        found = self.server.statistics(request.name, request.version)
        return self._make("ModelStatisticsResponse", {"model_stats": found})

    # --- the repository ---
    async def repository_index(self, request: Any) -> Any:
        """All models."""
        models = list(self.server.repository.index(ready=request.ready))
        return self._make("RepositoryIndexResponse", {"models": models})

    async def repository_model_load(self, request: Any) -> Any:
        """Load a model, or what is new of it."""
        if request.parameters:
            raise InvalidRequest("a load takes no parameters: change models.toml instead")
        await self.server.repository.load(request.model_name)
        return self.messages.RepositoryModelLoadResponse()

    async def repository_model_unload(self, request: Any) -> Any:
        """Let a model go."""
        await self.server.repository.unload(request.model_name)
        return self.messages.RepositoryModelUnloadResponse()

    # --- inference ---
    async def model_infer(self, request: Any) -> Any:
        """The outputs for a request."""
        return self._response(await self.server.infer(read_request(request)))

    def _response(self, response: InferResponse) -> Any:
        message = self.messages.ModelInferResponse(
            model_name=response.model, model_version=response.version, id=response.id
        )
        for spec, array in response.outputs:
            message.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
            message.raw_output_contents.append(encode_raw(array))
        return message

    async def _unary(self, name: str, method: Method, data: bytes, context: Any) -> bytes:
        """Answer one call, with the status of its error."""
        held = 0
        try:
            self.server.check_size(len(data))
            self.server.reserve(len(data))
            held = len(data)
            request, subject = self._read(name, data, context)
            message = await method(request)
            if subject is not None and name == "RepositoryIndex":
                keep = [m for m in message.models if sees(self.server.access, subject, m.name)]
                del message.models[:]
                message.models.extend(keep)
            found: bytes = message.SerializeToString()
            return found
        except Exception as error:
            await self._abort(error, context)
            raise
        finally:
            self.server.release(held)

    def _read(self, name: str, data: bytes, context: Any) -> tuple[Any, Subject | None]:
        """A request that its sender may make, and who that is; None where everybody may ask."""
        subject = self._admit(name, context)
        request = read_message(getattr(self.messages, f"{name}Request"), data)
        if subject is not None:
            check_right(self.server.access, subject, name, request)
        return request, subject

    def _admit(self, name: str, context: Any) -> Subject | None:
        """Whom a call is from; None where everybody may ask."""
        if self.server.access.is_open or name in OPEN:
            return None
        shown = context.auth_context().get("x509_pem_cert")
        metadata = context.invocation_metadata() or ()
        header = next((value for key, value in metadata if key == "authorization"), None)
        certificate = ssl.PEM_cert_to_DER_cert(shown[0].decode()) if shown else None
        address = context.peer().partition(":")[2].rpartition(":")[0]
        return self.server.access.admit(
            Peer(address, certificate, header if isinstance(header, str) else None)
        )

    async def _abort(self, error: Exception, context: Any) -> None:
        if isinstance(error, ServingError):
            await context.abort(getattr(self._grpc.StatusCode, error.code), error.text)
        text = wrap(error, "answering a request").what
        await context.abort(self._grpc.StatusCode.INTERNAL, text)

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answer a stream of requests, in order; several are computed at once."""
        ahead: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(STREAM_AHEAD)

        async def read() -> None:
            try:
                async for data in requests:
                    await ahead.put(asyncio.create_task(self._stream_one(data, context)))
            finally:
                await ahead.put(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await ahead.get()) is not None:
                yield await task
        finally:
            reader.cancel()
            while not ahead.empty():
                if (task := ahead.get_nowait()) is not None:
                    task.cancel()

    async def _stream_one(self, data: bytes, context: Any) -> bytes:
        """An answer of a stream: an error is one of its fields."""
        answer, held = self.messages.ModelStreamInferResponse(), 0
        try:
            self.server.check_size(len(data))
            self.server.reserve(len(data))
            held = len(data)
            request, _ = self._read("ModelInfer", data, context)
            answer.infer_response.id = request.id
            answer.infer_response.CopyFrom(await self.model_infer(request))
        except ServingError as error:
            answer.error_message = error.text
        except Exception as error:
            answer.error_message = wrap(error, "answering a request").what
        finally:
            self.server.release(held)
        found: bytes = answer.SerializeToString()
        return found

    def handler(self) -> Any:
        """The service as gRPC takes it, on bytes."""
        methods: dict[str, Any] = {}
        for method in self.messages.service.methods:
            if method.client_streaming:
                found = self._grpc.stream_stream_rpc_method_handler(self._stream)
            else:
                found = self._grpc.unary_unary_rpc_method_handler(self._bind(method.name))
            methods[method.name] = found
        return self._grpc.method_handlers_generic_handler(SERVICE, methods)

    def _bind(self, name: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        words = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
        method: Method = getattr(self, words)

        async def answer(data: bytes, context: Any) -> bytes:
            return await self._unary(name, method, data, context)

        return answer


def make_server(server: Server, address: str, credentials: Any = None) -> tuple[Any, int]:
    """A gRPC server that is not started yet.

    Args:
        server: The server.
        address: HOST:PORT; port 0: any that is free.
        credentials: Of TLS; None: there is none.

    Returns:
        It, and its port.

    Raises:
        RuntimeError: The address is in use.
    """
    aio = load_extra("grpc.aio", "serving over gRPC")
    most = server.settings.max_request_bytes
    options = [
        ("grpc.max_receive_message_length", most + (1 << 16)),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
    ]
    made = aio.server(options=options, maximum_concurrent_rpcs=CONCURRENT)
    made.add_generic_rpc_handlers((Service(server).handler(),))
    if credentials is not None:
        return made, made.add_secure_port(address, credentials)
    return made, made.add_insecure_port(address)
