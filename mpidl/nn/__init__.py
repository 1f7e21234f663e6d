"""Layers, losses and models over one flat parameter buffer."""

from mpidl.nn.activation import Activation, Dropout, ReLU, Softmax
from mpidl.nn.attention import SelfAttention
from mpidl.nn.composite import Concat, Identity, Recompute, Residual, Sequential
from mpidl.nn.conv import Conv1D, Conv2D, Conv3D, ConvTranspose2D
from mpidl.nn.dense import Dense
from mpidl.nn.embedding import Embedding, Positions
from mpidl.nn.layer import Backward, Layer, Runtime
from mpidl.nn.loss import LossResult, PairLoss, SoftmaxCrossEntropy
from mpidl.nn.model import GradientsReady, Model
from mpidl.nn.norm import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from mpidl.nn.parameters import FlatParameters, FlatPart, ParameterSpec
from mpidl.nn.pool import AvgPool2D, GlobalAveragePool, MaxPool2D
from mpidl.nn.recurrent import GRU, LSTM
from mpidl.nn.reshape import Flatten, Reshape
from mpidl.nn.spectral import SpectralConv

__all__ = [
    "GRU",
    "LSTM",
    "Activation",
    "AvgPool2D",
    "Backward",
    "BatchNorm",
    "Concat",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "ConvTranspose2D",
    "Dense",
    "Dropout",
    "Embedding",
    "FlatParameters",
    "FlatPart",
    "Flatten",
    "GlobalAveragePool",
    "GradientsReady",
    "GroupNorm",
    "Identity",
    "Layer",
    "LayerNorm",
    "LossResult",
    "MaxPool2D",
    "Model",
    "PairLoss",
    "ParameterSpec",
    "Positions",
    "RMSNorm",
    "ReLU",
    "Recompute",
    "Reshape",
    "Residual",
    "Runtime",
    "SelfAttention",
    "Sequential",
    "Softmax",
    "SoftmaxCrossEntropy",
    "SpectralConv",
]
