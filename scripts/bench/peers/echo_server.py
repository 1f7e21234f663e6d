"""A gRPC server that answers every request with the same bytes: what no server in Python is below.

On the event loop that `mpidl serve` uses, with its library and nothing behind it.
"""

from __future__ import annotations

from typing import Any

import grpc.aio
import uvloop

from mpidl.serving.wire import SERVICE, load_messages


async def main() -> None:
    """Serve until the process is ended."""
    answer = load_messages().ModelInferResponse(model_name="echo")
    answer.outputs.add(name="probability", datatype="FP32", shape=(1, 10))
    answer.raw_output_contents.append(bytes(40))
    content = answer.SerializeToString()

    async def infer(request: bytes, context: Any) -> bytes:
        return content

    server = grpc.aio.server()
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"serving on grpc://127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main())
