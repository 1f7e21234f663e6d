"""Exported programs, executed by onnxruntime, against our own models."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.errors import ConfigError
from mpidl.inference.export import onnx_file
from mpidl.inference.export.graph import Graph
from mpidl.inference.export.layers import CONVERTERS, convert
from mpidl.inference.export.onnx_file import OPSET, build_program, describe
from mpidl.inference.export.tasks import INPUTS, PREDICTORS
from mpidl.models import MODELS, build_layers
from mpidl.nn import Dense, Embedding, Flatten, Layer, Model
from mpidl.task import TASKS, FieldSpec, InputSpec
from mpidl.task.spec import TargetSpec
from mpidl.train.inputs import Inputs
from tests.models.test_models import TASKS as SAMPLES
from tests.nn.test_layers import LAYERS

TOLERANCE = 1e-4  # of the largest output


def randomize(model: Model, rng: np.random.Generator) -> None:
    """Parameters as after training: biases and running statistics are not what they begin with."""
    model.parameters.initialize(3)
    flat = model.parameters
    flat.values[...] += 0.05 * rng.standard_normal(flat.values.shape).astype(np.float32)
    flat.state[...] = rng.uniform(0.5, 1.5, flat.state.shape)


def execute(program: Any, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        program.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert np.abs(expected).max() > 1e-3, "nothing is compared"
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def run_layers(layers: list[Layer], x: np.ndarray, rng: np.random.Generator) -> None:
    """Compare layers with their conversion, for two sizes of batches."""
    model = Model(layers, x.shape[1:], NumpyOps())
    randomize(model, rng)
    graph = Graph()
    value = graph.input("x", x.shape[1:], x.dtype)
    for layer in layers:
        value = convert(graph, layer, value)
    assert value.shape == model.output_shape
    graph.output("y", value, np.float32)
    opset = [onnx.helper.make_opsetid("", OPSET)]
    program = onnx.helper.make_model(graph.finish("layers"), opset_imports=opset, ir_version=9)
    onnx.checker.check_model(program, full_check=True)
    for batch in (x, x[:1]):
        assert_close(execute(program, x=batch)["y"], np.array(model.forward(batch)[0]))


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, rng: np.random.Generator) -> None:
    make, shape = LAYERS[name]
    made = make()
    layers = [made] if isinstance(made, Layer) else made
    run_layers(layers, rng.standard_normal((3, *shape)).astype(np.float32), rng)


@pytest.mark.parametrize("positions", [False, True])
def test_embeddings(positions: bool, rng: np.random.Generator) -> None:
    ids = rng.integers(0, 11, (3, 5))
    run_layers([Embedding(11, 7, positions=positions), Dense(4)], ids, rng)


def test_every_layer_and_every_task_has_a_converter() -> None:
    checked = {Embedding}
    for make, _ in LAYERS.values():
        made = make()
        for layer in [made] if isinstance(made, Layer) else made:
            checked |= {type(inner) for inner in layer.walk()}
    ours = {kind for kind in CONVERTERS if kind.__module__.startswith("mpidl.")}
    assert checked == ours
    assert {TASKS[name] for name in TASKS} == set(INPUTS) == set(PREDICTORS)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models(name: str, rng: np.random.Generator) -> None:
    """From raw samples, with their normalization, to logits; every model in its tiny size."""
    shape, outputs, _ = SAMPLES[name]
    tokens = len(shape) == 1
    if tokens:
        field = FieldSpec("text", (shape[0] + 1,))
        spec = InputSpec("language_model", (field,), TargetSpec((), outputs))
        raw = rng.integers(0, outputs, (3, shape[0] + 1))
    else:
        field = FieldSpec("image", shape, (60.0,), (70.0,))
        kind = "segmentation" if name in ("fno", "unet") else "classification"
        target = FieldSpec("label", shape[:2] if kind == "segmentation" else ())
        spec = InputSpec(kind, (field,), TargetSpec((target,), outputs + 1))
        outputs += 1
        raw = rng.integers(0, 256, (3, *shape)).astype(np.uint8)
    layers = build_layers(name, shape, outputs, {"size": "tiny"})
    found, expected = both(layers, spec, {field.name: raw}, rng)
    for key in ("raw", "probability"):
        if key in expected:
            assert_close(found[key], expected[key])


def both(
    layers: list[Layer], spec: InputSpec, arrays: dict[str, np.ndarray], rng: Any, **options: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the exported program and the task itself predict."""
    task = TASKS[spec.task](TASKS[spec.task].Options(**options), spec)
    model = Model(layers, task.input_shape, NumpyOps())
    randomize(model, rng)
    outputs = np.array(model.forward(Inputs(task, model).features(arrays))[0])
    expected = {**task.predictions(outputs), "raw": outputs} if spec.task != "rollout" else {}
    if spec.task == "rollout":
        through = task.through_samples(model)
        frames = np.array(through.forward(Inputs(task, model).features(arrays))[0])
        expected = {"value": task.predictions(frames)["value"][:, 0], "raw": frames[:, 0]}
    given = {}
    for field in spec.features:
        array = arrays[field.name]
        if spec.task == "language_model":
            array = array[:, :-1]
        if spec.task == "rollout":
            array = array[:, : task.options.history]
        given[field.name] = array
    dtypes = {name: array.dtype.name for name, array in given.items()}
    program = build_program(model, task, dtypes)
    renamed = {one.name: given[one.name.removeprefix("input_")] for one in program.graph.input}
    found = execute(program, **renamed)
    assert set(found) == set(expected)
    for name in ("label", "token"):
        if name in expected:
            assert found[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(found[name], expected[name])
    return found, expected


def test_classes_of_several_fields(rng: np.random.Generator) -> None:
    """Gray and colored images, each with its own normalization, joined along their channels."""
    fields = (
        FieldSpec("gray", (4, 5), (3.0,), (2.0,)),
        FieldSpec("color", (4, 5, 3), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
    )
    spec = InputSpec("classification", fields, TargetSpec((FieldSpec("y", ()),), 5))
    arrays = {
        "gray": rng.integers(0, 9, (6, 4, 5)).astype(np.uint8),
        "color": rng.standard_normal((6, 4, 5, 3)).astype(np.float32),
    }
    found, expected = both([Flatten(), Dense(5)], spec, arrays, rng)
    assert_close(found["probability"], expected["probability"])
    assert_close(found["raw"], expected["raw"])


def test_multilabel(rng: np.random.Generator) -> None:
    spec = InputSpec(
        "multilabel", (FieldSpec("x", (6,), (1.0,), (2.0,)),), TargetSpec((), shape=(3,))
    )
    arrays = {"x": rng.standard_normal((40, 6)).astype(np.float32)}
    found, expected = both([Dense(3)], spec, arrays, rng, threshold=0.3)
    assert_close(found["probability"], expected["probability"])
    assert 0 < found["label"].mean() < 1


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("shape", [(), (3,), (4, 2)])
def test_values_in_their_units(shape: tuple[int, ...], dtype: str, rng: Any) -> None:
    width = shape[-1] if shape else 1
    target = FieldSpec("y", shape, tuple(range(3, 3 + width)), tuple(range(1, 1 + width)))
    features = (FieldSpec("value", (4,), (1013.25,), (10.0,)),)
    spec = InputSpec("regression", features, TargetSpec((target,), shape=shape), "series")
    raw = (1013.25 + 10 * rng.standard_normal((9, 4))).astype(dtype)
    layers: list[Layer] = [Dense(int(np.prod(shape)))]
    found, expected = both(layers, spec, {"value": raw}, rng)
    assert_close(found["value"], expected["value"])
    assert_close(found["raw"], expected["raw"])


@pytest.mark.parametrize(("frame", "dimensions"), [((6,), 1), ((6, 2), 1), ((4, 4, 2), 2)])
def test_the_next_frame(frame: tuple[int, ...], dimensions: int, rng: Any) -> None:
    field = FieldSpec("u", (5, *frame), (2.0,), (3.0,))
    spec = InputSpec("rollout", (field,), TargetSpec())
    arrays = {"u": rng.standard_normal((3, 5, *frame)).astype(np.float32)}
    channels = 1 if len(frame) == dimensions else frame[-1]
    layers = build_layers(
        "fno", (*frame[:dimensions], channels), channels, {"modes": 2, "width": 8}
    )
    found, expected = both(layers, spec, arrays, rng, history=2, dimensions=dimensions)
    assert_close(found["value"], expected["value"])
    assert_close(found["raw"], expected["raw"])


def small(field: FieldSpec, classes: int = 2, **target: Any) -> tuple[Model, Any]:
    spec = InputSpec(
        "classification", (field,), TargetSpec((FieldSpec("y", ()),), classes, **target)
    )
    model = Model([Dense(classes)], (3,), NumpyOps())
    return model, TASKS["classification"](TASKS["classification"].Options(), spec)


def test_metadata() -> None:
    model, task = small(FieldSpec("x", (3,)), class_names=("cat", "dog"))
    program = build_program(model, task, {"x": "float32"})
    describe(program, task, {"model": "mlp"}, {"x": "Pa", "z": "K"})
    found = {entry.key: entry.value for entry in program.metadata_props}
    assert json.loads(found["class_names"]) == ["cat", "dog"]
    assert json.loads(found["units"]) == {"x": "Pa"} and json.loads(found["inputs"]) == ["x"]
    assert found["task"] == "classification" and found["model"] == "mlp"
    assert program.opset_import[0].version == OPSET


class Double(Layer):
    kind = "double"

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def forward(self, x: Any, *, train: bool) -> Any:
        return 2 * x, lambda dy: 2 * dy


def test_what_cannot_be_exported_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = small(FieldSpec("x", (3,)))
    own = Model([Dense(2), Double()], (3,), NumpyOps())
    with pytest.raises(ConfigError, match="class Double cannot") as caught:
        build_program(own, task, {"x": "float32"})
    assert "double1" in str(caught.value) and "CONVERTERS[Double]" in caught.value.remedy
    monkeypatch.setitem(CONVERTERS, Double, lambda graph, layer, x: graph.apply("Add", x, x.name))
    own.parameters.initialize(0)
    x = np.ones((2, 3), np.float32)
    found = execute(build_program(own, task, {"x": "float32"}), x=x)["raw"]
    assert_close(found, np.array(own.forward(x)[0]))
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 8)
    with pytest.raises(ConfigError, match="at most 2 GiB"):
        build_program(model, task, {"x": "float32"})


def test_tokens_are_whole_numbers() -> None:
    spec = InputSpec("language_model", (FieldSpec("text", (5,)),), TargetSpec((), 7))
    task = TASKS["language_model"](None, spec)
    model = Model([Embedding(7, 3), Dense(7)], (4,), NumpyOps())
    with pytest.raises(ConfigError, match="float32 is impossible for 'text'"):
        build_program(model, task, {"text": "float32"})
