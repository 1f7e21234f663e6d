"""Layers, losses and models over one flat parameter buffer."""

from mpidl.nn.activation import ReLU
from mpidl.nn.conv import Conv2D
from mpidl.nn.dense import Dense
from mpidl.nn.layer import Backward, Layer
from mpidl.nn.loss import SoftmaxCrossEntropy
from mpidl.nn.model import GradientsReady, Model
from mpidl.nn.parameters import FlatParameters, ParameterSpec
from mpidl.nn.pool import MaxPool2D
from mpidl.nn.reshape import Flatten

__all__ = [
    "Backward",
    "Conv2D",
    "Dense",
    "FlatParameters",
    "Flatten",
    "GradientsReady",
    "Layer",
    "MaxPool2D",
    "Model",
    "ParameterSpec",
    "ReLU",
    "SoftmaxCrossEntropy",
]
