"""What a task does around its model, as ONNX operations: raw samples in, predictions out.

Inputs have the names, shapes and units of the fields of the data set; outputs those of `mpidl
predict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mpidl.errors import ConfigError
from mpidl.inference.export.graph import Graph, Value
from mpidl.task import FieldSpec, Task
from mpidl.task.classification import Classification, ClassTask
from mpidl.task.language_model import LanguageModel
from mpidl.task.multilabel import Multilabel
from mpidl.task.regression import Regression
from mpidl.task.rollout import Rollout
from mpidl.task.segmentation import Segmentation
from mpidl.task.spec import channel_shape

RAW = "raw"  # the output of the model itself
Predictions = dict[str, tuple[Value, Any]]  # values and dtypes by name


def input_name(name: str, task: Task) -> str:
    """Name of the input for a field: that of the field, where no output has it."""
    return f"input_{name}" if name in (RAW, *_converter(PREDICTORS, task)[1]) else name


def convert_inputs(graph: Graph, task: Task, dtypes: Mapping[str, Any], *, ids: bool) -> Value:
    """Inputs of the graph, and the input of the model that is made of them.

    Args:
        graph: To add to.
        task: Of the model.
        dtypes: Of the inputs, by name of the field.
        ids: Whether the model takes whole numbers.
    """
    graph.scope = "inputs"
    convert: Callable[..., Value] = _converter(INPUTS, task)
    return convert(graph, task, dtypes, ids)


def convert_predictions(graph: Graph, task: Task, outputs: Value) -> Predictions:
    """What the task makes of the outputs of its model.

    Args:
        graph: To add to.
        task: Of the model.
        outputs: Of the model.
    """
    graph.scope = "predictions"
    convert, names = _converter(PREDICTORS, task)
    found: Predictions = convert(graph, task, outputs)
    return {name: found[name] for name in names}


def _converter(converters: Mapping[type[Task], Any], task: Task) -> Any:
    try:
        return converters[type(task)]
    except KeyError:
        raise ConfigError(
            f"models of the task {task.spec.task!r} cannot be exported to ONNX",
            where="task.name",
            remedy="add converters for it in mpidl/inference/export/tasks.py; or export the "
            "parameters to a file .safetensors",
        ) from None


def _normalized(graph: Graph, raw: Value, field: FieldSpec) -> Value:
    """raw * scale + shift in float32, as training rounds it."""
    mean, std = np.array(field.mean), np.array(field.std)
    x = Value(graph.cast(raw.name, np.float32), raw.shape)
    if (mean != 0).any() or (std != 1).any():
        x = graph.apply("Mul", x, graph.constant(1.0 / std))
        x = graph.apply("Add", x, graph.constant(-mean / std))
    return x


def _fields(graph: Graph, task: Task, dtypes: Mapping[str, Any], ids: bool) -> Value:
    """Fields joined along their channels."""
    parts: list[Value] = []
    for field in task.spec.features:
        raw = graph.input(input_name(field.name, task), field.shape, dtypes[field.name])
        if ids:
            name = graph.cast(raw.name, np.int64)
            return graph.as_samples(Value(name, raw.shape), task.input_shape)
        single = len(task.spec.features) == 1
        shape = task.input_shape if single else channel_shape(field.shape, task.spec.layout)
        parts.append(_normalized(graph, graph.as_samples(raw, shape), field))
    if len(parts) == 1:
        return parts[0]
    joined = graph.node("Concat", [part.name for part in parts], axis=-1)
    return Value(joined, task.input_shape)


def _tokens(graph: Graph, task: LanguageModel, dtypes: Mapping[str, Any], ids: bool) -> Value:
    """Tokens without the last one of a stored window, which is only a target."""
    (field,) = task.spec.features
    raw = graph.input(input_name(field.name, task), task.input_shape, dtypes[field.name])
    if ids:
        return Value(graph.cast(raw.name, np.int64), raw.shape)
    return _normalized(graph, raw, field)


def _history(graph: Graph, task: Rollout, dtypes: Mapping[str, Any], ids: bool) -> Value:
    """The last frames of a trajectory, joined along their channels."""
    (field,) = task.spec.features
    (own,) = task.input_fields
    count = task.options.history
    shape = (count, *field.shape[1:])
    raw = graph.input(input_name(field.name, task), shape, dtypes[field.name])
    frames = graph.as_samples(raw, (count, *task.frame)).name
    last = len(task.frame)
    joined = graph.transpose(frames, 0, *range(2, last + 1), 1, last + 1)
    x = graph.as_samples(Value(joined, ()), task.input_shape)
    return _normalized(graph, x, own)


def _classes(graph: Graph, task: ClassTask, outputs: Value) -> Predictions:
    probability = graph.apply("Softmax", outputs, axis=-1)
    label = Value(graph.node("ArgMax", [probability.name], axis=-1, keepdims=0), outputs.shape[:-1])
    return {"label": (label, np.int64), "probability": (probability, np.float32)}


def _labels(graph: Graph, task: Multilabel, outputs: Value) -> Predictions:
    probability = graph.apply("Sigmoid", outputs)
    threshold = graph.constant(np.array(task.options.threshold))
    above = graph.apply("Greater", probability, threshold)
    label = Value(graph.cast(above.name, np.uint8), above.shape)
    return {"label": (label, np.uint8), "probability": (probability, np.float32)}


def _token(graph: Graph, task: LanguageModel, outputs: Value) -> Predictions:
    name = graph.node("ArgMax", [outputs.name], axis=-1, keepdims=0)
    return {"token": (Value(name, outputs.shape[:-1]), np.int64)}


def _restored(graph: Graph, y: Value, scales: Sequence[Any]) -> Value:
    mean, std = scales
    y = graph.apply("Mul", y, graph.constant(np.asarray(std, np.float64)))
    return graph.apply("Add", y, graph.constant(np.asarray(mean, np.float64)))


def _values(graph: Graph, task: Regression, outputs: Value) -> Predictions:
    scales = task.scales if task.shape else [part[0] for part in task.scales]
    value = _restored(graph, graph.as_samples(outputs, task.shape), scales)
    return {"value": (value, np.float32)}


def _frame(graph: Graph, task: Rollout, outputs: Value) -> Predictions:
    value = _restored(graph, outputs, task.scales)
    return {"value": (graph.as_samples(value, task.spec.features[0].shape[1:]), np.float32)}


INPUTS: dict[type[Task], Any] = {
    Classification: _fields,
    LanguageModel: _tokens,
    Multilabel: _fields,
    Regression: _fields,
    Rollout: _history,
    Segmentation: _fields,
}
# and the names of the outputs
PREDICTORS: dict[type[Task], tuple[Any, tuple[str, ...]]] = {
    Classification: (_classes, ("label", "probability")),
    LanguageModel: (_token, ("token",)),
    Multilabel: (_labels, ("label", "probability")),
    Regression: (_values, ("value",)),
    Rollout: (_frame, ("value",)),
    Segmentation: (_classes, ("label", "probability")),
}
