"""Safetensors files: the parameters of a model."""

from __future__ import annotations

from mpidl.errors import ConfigError
from mpidl.inference.export.formats import AUTO, Exporter
from mpidl.inference.predict import Predictor
from mpidl.models.weights import check_weights, save_weights


class Safetensors(Exporter):
    """Parameters and state under their names in the model."""

    def check(self) -> None:
        check_weights(self.path)
        if self.input_dtype != AUTO:
            raise ConfigError(
                "a .safetensors file holds parameters and has no inputs",
                where="--input-dtype",
                remedy="leave it out, or export to a file .onnx",
            )

    def write(self, predictor: Predictor) -> str:
        save_weights(predictor.model, self.path)
        parameters = predictor.model.parameters
        return f"{len(parameters.slots) + len(parameters.state_slots)} tensors"
