"""What can be written for samples, against NumPy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.errors import ConfigError
from mpidl.inference.outputs import OUTPUTS, Passed, choose_outputs, compute
from mpidl.inference.predict import Predictor
from mpidl.nn import Dense, Model, ReLU
from mpidl.task import TASKS, FieldSpec, InputSpec
from mpidl.task.spec import TargetSpec
from mpidl.train.inputs import Inputs


def predictor(spec: InputSpec, layers: list[Any], shape: tuple[int, ...]) -> Any:
    model = Model(layers, shape, NumpyOps())
    rng = np.random.default_rng(0)
    model.parameters.values[...] = rng.standard_normal(model.parameters.values.shape)
    task = TASKS[spec.task](TASKS[spec.task].Options(), spec)
    found: Any = SimpleNamespace(
        spec=spec,
        task=task,
        model=model,
        ops=model.ops,
        inputs=Inputs(task, model),
        through=model,
        shape=model.output_shape,
    )
    found.outputs = lambda arrays, out=None: Predictor.outputs(found, arrays, out)
    found.activations = lambda arrays, layer: Predictor.activations(found, arrays, layer)
    return found


def classifier() -> Any:
    spec = InputSpec(
        "classification", (FieldSpec("x", (5,)),), TargetSpec((FieldSpec("y", ()),), 4)
    )
    return predictor(spec, [Dense(7), ReLU(), Dense(4)], (5,))


def test_classes(rng: np.random.Generator) -> None:
    own, x = classifier(), rng.standard_normal((9, 5)).astype(np.float32)
    wanted = ["top_k:2", "embedding:relu1", "raw", "label", "probability", "predictions"]
    outputs = choose_outputs(wanted, own)
    found = compute(outputs, Passed(own, {"x": x}))
    raw = own.outputs({"x": x})
    np.testing.assert_array_equal(found["raw"], raw)
    shares = np.exp(raw.astype(float)) / np.exp(raw.astype(float)).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found["probability"], shares, rtol=1e-5)
    order = np.argsort(-raw, axis=1)[:, :2]
    np.testing.assert_array_equal(found["top_label"], order)
    np.testing.assert_array_equal(found["label"], order[:, 0])
    top = np.take_along_axis(shares, order, axis=1)
    np.testing.assert_allclose(found["top_probability"], top, rtol=1e-5)
    weight, bias = (own.model.parameters.value(f"dense1.{name}") for name in ("weight", "bias"))
    hidden = np.maximum(x @ weight + bias, 0)
    np.testing.assert_allclose(found["embedding_relu1"], hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("probabilities", "there is no such output"),
        ("value", "is nothing that the task 'classification' predicts"),
        ("top_k", "takes a number of classes"),
        ("top_k:0", "from 1 to 4"),
        ("top_k:99999999999999", "from 1 to 4"),
        ("top_k:02", "from 1 to 4"),
        ("top_k:٢", "from 1 to 4"),
        ("embedding:conv1", "the layers are dense1, relu1, dense2"),
        ("log_likelihood", "needs a language model"),
        ("raw:3", "takes nothing behind a colon"),
    ],
)
def test_what_there_is_not_is_refused(wanted: str, words: str) -> None:
    with pytest.raises(ConfigError, match="output") as caught:
        choose_outputs([wanted], classifier())
    assert words in str(caught.value)


def test_arrays_of_the_same_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="is given twice"):
        choose_outputs(["top_k:2", "top_k:3"], classifier())


def test_every_output_says_what_it_is() -> None:
    assert all(OUTPUTS[name].__doc__ for name in OUTPUTS)


def test_tokens(rng: np.random.Generator) -> None:
    from mpidl.nn import Embedding

    spec = InputSpec("language_model", (FieldSpec("tokens", (7,)),), TargetSpec((), 11))
    own = predictor(spec, [Embedding(11, 6, positions=True), Dense(11)], (6,))
    tokens = rng.integers(0, 11, (3, 7)).astype(np.uint16)
    (output,) = choose_outputs(["log_likelihood"], own)
    found = output.columns(Passed(own, {"tokens": tokens}))["log_likelihood"]
    logits = own.outputs({"tokens": tokens}).astype(float)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = [[logs[n, t, tokens[n, t + 1]] for t in range(6)] for n in range(3)]
    assert found.shape == (3, 6)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
