"""Weights in safetensors files: our own, and those of other programs."""

from mpidl.models.weights.formats import FORMATS, Format, Source, detect_format
from mpidl.models.weights.safetensors import check_weights, load_weights, read_tensors, save_weights

__all__ = [
    "FORMATS",
    "Format",
    "Source",
    "check_weights",
    "detect_format",
    "load_weights",
    "read_tensors",
    "save_weights",
]
