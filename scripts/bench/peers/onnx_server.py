"""A plain grpcio server of a CNN in onnxruntime, with dynamic batching: a peer of `mpidl serve`.

Threads of the usual pool read requests and put them into a queue; one thread takes all that wait,
up to --batch, and runs the session. Same protocol, same messages, same batching as mpidl's.
"""

from __future__ import annotations

import argparse
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import mpidl  # noqa: F401  (loads MPI before h5py)
from mpidl.comm.context import init
from mpidl.inference.predict import Predictor
from mpidl.serving.wire import SERVICE, load_messages


class Graph:
    """An ONNX graph that is built node by node, each on the output of the last one."""

    def __init__(self, source: str) -> None:
        self.nodes: list[Any] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.last = source

    def add(self, kind: str, *tensors: np.ndarray, **attributes: Any) -> None:
        """A node that takes the last output and some constants."""
        number = len(self.nodes)
        names = [f"c{number}_{index}" for index in range(len(tensors))]
        self.tensors |= dict(zip(names, tensors, strict=True))
        inputs, self.last = [self.last, *names], f"y{number}"
        self.nodes.append(helper.make_node(kind, inputs, [self.last], **attributes))

    def model(self, height: int, width: int) -> bytes:
        """The whole model."""
        take = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", height, width])
        give = helper.make_tensor_value_info(self.last, TensorProto.FLOAT, ["n", None])
        constants = [numpy_helper.from_array(array, name) for name, array in self.tensors.items()]
        graph = helper.make_graph(self.nodes, "cnn", [take], [give], constants)
        opset = [helper.make_opsetid("", 17)]
        made = helper.make_model(graph, opset_imports=opset, ir_version=8)
        onnx.checker.check_model(made)
        content: bytes = made.SerializeToString()
        return content


def build(run: Path) -> tuple[bytes, Predictor]:
    """The ONNX graph of a run of the model "cnn", with its normalization and softmax."""
    predictor = Predictor(run, init(), backend="numpy")
    scalar, values = predictor.inputs.scalar, predictor.model.parameters
    assert scalar is not None
    height, width = predictor.spec.features[0].shape
    graph, channels = Graph("image"), 1
    graph.add("Mul", np.array(scalar[0], np.float32))
    graph.add("Add", np.array(scalar[1], np.float32))
    graph.add("Reshape", np.array([-1, 1, height, width]))
    layers = [layer for layer in predictor.model.layers if layer.kind in ("conv2d", "dense")]
    for index, layer in enumerate(layers):
        weight = np.array(values.value(f"{layer.name}.weight"))
        bias = np.array(values.value(f"{layer.name}.bias"))
        if layer.kind == "conv2d":
            kernel = weight.reshape(3, 3, channels, -1).transpose(3, 2, 0, 1)
            graph.add("Conv", np.ascontiguousarray(kernel), bias, pads=[1, 1, 1, 1])
            graph.add("Relu")
            graph.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
            channels = layer.channels
            continue
        if layers[index - 1].kind == "conv2d":
            graph.add("Transpose", perm=[0, 2, 3, 1])
            graph.add("Reshape", np.array([0, -1]))
        graph.add("Gemm", weight, bias)
        graph.add("Softmax" if layer is layers[-1] else "Relu")
    return graph.model(height, width), predictor


class Batching:
    """The queue and the thread that empties it."""

    def __init__(self, session: Any, batch: int) -> None:
        self._session, self._batch = session, batch
        self._queue: queue.SimpleQueue[tuple[np.ndarray, Future[np.ndarray]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def infer(self, image: np.ndarray) -> np.ndarray:
        future: Future[np.ndarray] = Future()
        self._queue.put((image, future))
        return future.result()

    def _run(self) -> None:
        while True:
            taken = [self._queue.get()]
            while len(taken) < self._batch and not self._queue.empty():
                taken.append(self._queue.get())
            images = np.concatenate([image for image, _ in taken])
            (found,) = self._session.run(None, {"image": images})
            place = 0
            for image, future in taken:
                future.set_result(found[place : place + len(image)])
                place += len(image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    content, predictor = build(args.run)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    field = predictor.spec.features[0]
    image = np.random.default_rng(0).integers(0, 256, (4, *field.shape)).astype(np.float32)
    ours = predictor.predict({field.name: image})["probability"]
    np.testing.assert_allclose(session.run(None, {"image": image})[0], ours, rtol=1e-4, atol=1e-5)
    batching, messages = Batching(session, args.batch), load_messages()

    def infer(request: Any, context: Any) -> Any:
        shape = tuple(request.inputs[0].shape)
        image = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(shape)
        found = batching.infer(image)
        answer = messages.ModelInferResponse(model_name=request.model_name, id=request.id)
        answer.outputs.add(name="probability", datatype="FP32", shape=found.shape)
        answer.raw_output_contents.append(found.tobytes())
        return answer

    handler = grpc.unary_unary_rpc_method_handler(
        infer,
        messages.ModelInferRequest.FromString,
        messages.ModelInferResponse.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(64))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"serving on grpc://127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
