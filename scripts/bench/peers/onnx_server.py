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


def build(run: Path) -> tuple[bytes, Predictor]:
    """The ONNX graph of a run of the model "cnn", with its normalization and softmax."""
    predictor = Predictor(run, init(), backend="numpy")
    scalar = predictor.inputs.scalar
    assert scalar is not None
    values = predictor.model.parameters
    weights = {name: np.array(values.value(name)) for name in values.slots}
    height, width = predictor.spec.features[0].shape
    tensors: dict[str, Any] = {
        "scale": np.float32(scalar[0]), "shift": np.float32(scalar[1]),
        "image_shape": np.array([-1, 1, height, width]), "flat": np.array([0, -1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Mul", ["image", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["shifted"]),
        helper.make_node("Reshape", ["shifted", "image_shape"], ["x0"]),
    ]
    last, convolutions, dense = "x0", [], []
    for layer in predictor.model.layers:
        (convolutions if layer.kind == "conv2d" else dense if layer.kind == "dense" else []).append(
            layer
        )
    channels = 1
    for layer in convolutions:
        name, out = layer.name, layer.channels
        kernel = weights[f"{name}.weight"].reshape(3, 3, channels, out)
        tensors[f"{name}.w"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        tensors[f"{name}.b"] = weights[f"{name}.bias"]
        nodes += [
            helper.make_node(
                "Conv", [last, f"{name}.w", f"{name}.b"], [f"{name}.y"], pads=[1, 1, 1, 1]
            ),
            helper.make_node("Relu", [f"{name}.y"], [f"{name}.r"]),
            helper.make_node(
                "MaxPool", [f"{name}.r"], [f"{name}.p"], kernel_shape=[2, 2], strides=[2, 2]
            ),
        ]
        last, channels = f"{name}.p", out
    nodes += [
        helper.make_node("Transpose", [last], ["nhwc"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["nhwc", "flat"], ["row"]),
    ]
    last = "row"
    for layer in dense:
        name = layer.name
        tensors[f"{name}.w"], tensors[f"{name}.b"] = (
            weights[f"{name}.weight"],
            weights[f"{name}.bias"],
        )
        nodes.append(helper.make_node("Gemm", [last, f"{name}.w", f"{name}.b"], [f"{name}.y"]))
        last = f"{name}.y"
        if layer is not dense[-1]:
            nodes.append(helper.make_node("Relu", [last], [f"{name}.r"]))
            last = f"{name}.r"
    nodes.append(helper.make_node("Softmax", [last], ["probability"], axis=-1))
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", height, width])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", None])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString(), predictor


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
            (found,) = self._session.run(["probability"], {"image": images})
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
    np.testing.assert_allclose(
        session.run(["probability"], {"image": image})[0], ours, rtol=1e-4, atol=1e-5
    )
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
