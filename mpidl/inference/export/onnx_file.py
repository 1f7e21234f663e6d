"""ONNX files: a program from raw samples to predictions that other runtimes execute."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

import mpidl
from mpidl.data.manifest import Field, load_manifest
from mpidl.errors import ConfigError, DataError
from mpidl.extras import load_extra
from mpidl.files import write_file, writing
from mpidl.inference.export.formats import AUTO, DTYPES, Exporter
from mpidl.inference.export.graph import ACTIVITY, Graph
from mpidl.inference.export.layers import convert
from mpidl.inference.export.tasks import RAW, convert_inputs, convert_predictions, input_name
from mpidl.inference.predict import Predictor
from mpidl.nn import Model
from mpidl.task import Task

OPSET = 20  # the first with Gelu; onnxruntime has it since 1.17
NONE: Mapping[str, str] = {}
IR_VERSION = 9  # of the same time
MOST_BYTES = (2 << 30) - (16 << 20)  # a protobuf message cannot be larger than 2 GiB


class Onnx(Exporter):
    """The model with the normalization of its inputs and what the task makes of its outputs."""

    def check(self) -> None:
        super().check()
        load_extra("onnx", ACTIVITY)

    def write(self, predictor: Predictor) -> str:
        if predictor.meta.quantized is not None:
            raise ConfigError(
                "a quantized model is not exported to ONNX",
                where=str(predictor.path),
                remedy="export the run that it was made from, and quantize that program",
            )
        fields = _stored_fields(predictor.config.data.folders)
        names = [field.name for field in predictor.spec.features]
        ids = predictor.model.takes_ids
        dtypes = {name: self._dtype(fields.get(name), ids=ids) for name in names}
        program = build_program(predictor.model, predictor.task, dtypes)
        units = {name: field.units for name, field in fields.items() if field.units}
        about = {"model": predictor.config.model.name, "checkpoint": predictor.digest}
        describe(program, predictor.task, about, units)
        with writing(self.path):
            write_file(self.path, program.SerializeToString())
        inputs = [f"{input_name(name, predictor.task)} ({dtypes[name]})" for name in names]
        outputs = [one.name for one in program.graph.output]
        return f"opset {OPSET}, from {', '.join(inputs)} to {', '.join(outputs)}"

    def _dtype(self, field: Field | None, *, ids: bool) -> str:
        """Dtype of an input: as wanted, else as the training data are stored."""
        if self.input_dtype != AUTO:
            return self.input_dtype
        if field is not None and field.dtype in DTYPES:
            return field.dtype
        return "int64" if ids else "float32"


def _stored_fields(folders: tuple[str, ...]) -> Mapping[str, Field]:
    """Fields of the training data; none where they are not at hand."""
    try:
        return load_manifest(folders[0]).fields
    except DataError:
        return {}


def build_program(model: Model, task: Task, dtypes: Mapping[str, str]) -> Any:
    """The `onnx.ModelProto` of a model and its task.

    Args:
        model: The model.
        task: What it was trained for.
        dtypes: Of the inputs, by name of the field.

    Raises:
        ConfigError: A layer, the task or the dtypes cannot be exported, or the model is too large.
    """
    onnx = load_extra("onnx", ACTIVITY)
    _check_dtypes(dtypes, ids=model.takes_ids)
    if model.parameters.count * 4 > MOST_BYTES:
        raise _too_large(model.parameters.count * 4)
    graph = Graph()
    x = convert_inputs(graph, task, dtypes, ids=model.takes_ids)
    for layer in model.layers:
        x = convert(graph, layer, x)
    for name, (value, dtype) in convert_predictions(graph, task, x).items():
        graph.output(name, value, dtype)
    graph.output(RAW, x, np.float32)
    if graph.bytes > MOST_BYTES:
        raise _too_large(graph.bytes)
    program = onnx.helper.make_model(
        graph.finish("mpidl"),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="mpidl",
        producer_version=mpidl.__version__,
    )
    onnx.checker.check_model(program, full_check=True)
    return program


def _too_large(size: int) -> ConfigError:
    return ConfigError(
        f"an ONNX file holds at most 2 GiB, but the constants of this model have "
        f"{size / 2**30:.1f} GiB",
        where="export",
        remedy="export the parameters to a file .safetensors",
    )


def _check_dtypes(dtypes: Mapping[str, str], *, ids: bool) -> None:
    """Refuse dtypes of inputs that the model cannot take."""
    for name, dtype in dtypes.items():
        if ids and np.dtype(dtype).kind not in "iu":
            raise ConfigError(
                f"{dtype} is impossible for {name!r}, which holds tokens",
                where="--input-dtype",
                remedy="choose int64",
            )


def describe(
    program: Any, task: Task, about: Mapping[str, str], units: Mapping[str, str] = NONE
) -> None:
    """Write what a user must know into the metadata of a program.

    Args:
        program: An `onnx.ModelProto`; its `metadata_props` are set.
        task: Of the model.
        about: More entries.
        units: Of the fields that have them, by name.
    """
    spec = task.spec
    target = spec.target
    entries = {
        "task": spec.task,
        "inputs": json.dumps([field.name for field in spec.features]),
        "targets": json.dumps([field.name for field in target.fields]),
        **about,
    }
    if target.class_names:
        entries["class_names"] = json.dumps(target.class_names)
    used = {field.name: units[field.name] for field in (*spec.features, *target.fields)
            if field.name in units}  # fmt: skip
    if used:
        entries["units"] = json.dumps(used)
    load_extra("onnx", ACTIVITY).helper.set_model_props(program, entries)
