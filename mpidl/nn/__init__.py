"""Layers, losses and models over one flat parameter buffer."""

from mpidl.nn.layer import Backward, Layer, Runtime
from mpidl.nn.layers.activation import Activation, Dropout, ReLU, Softmax
from mpidl.nn.layers.attention import SelfAttention
from mpidl.nn.layers.batch_norm import BatchNorm
from mpidl.nn.layers.composite import Concat, Identity, Residual, Sequential
from mpidl.nn.layers.conv import Conv1D, Conv2D, Conv3D, ConvTranspose2D
from mpidl.nn.layers.dense import Dense
from mpidl.nn.layers.embedding import Embedding, PositionalEmbedding
from mpidl.nn.layers.norm import GroupNorm, LayerNorm, RMSNorm
from mpidl.nn.layers.pool import AvgPool2D, GlobalAvgPool, MaxPool2D
from mpidl.nn.layers.recompute import Recompute
from mpidl.nn.layers.recurrent import GRU, LSTM
from mpidl.nn.layers.reshape import Flatten, Reshape
from mpidl.nn.layers.spectral import SpectralConv
from mpidl.nn.losses import LOSSES, Loss, LossResult
from mpidl.nn.losses.bce import BCEWithLogitsLoss
from mpidl.nn.losses.cross_entropy import CrossEntropy
from mpidl.nn.losses.huber import HuberLoss
from mpidl.nn.losses.mae import MAELoss
from mpidl.nn.losses.mse import MSELoss
from mpidl.nn.losses.relative_l2 import RelativeL2Loss
from mpidl.nn.model import GradientsReady, Model, ModelBackward
from mpidl.nn.parameters import FlatParameters, ParameterShard, ParameterSpec
from mpidl.nn.storage import Storage, WholeStorage
from mpidl.nn.unroll import Forward, FrameLoss, Unrolled

__all__ = [
    "GRU",
    "LOSSES",
    "LSTM",
    "Activation",
    "AvgPool2D",
    "BCEWithLogitsLoss",
    "Backward",
    "BatchNorm",
    "Concat",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "ConvTranspose2D",
    "CrossEntropy",
    "Dense",
    "Dropout",
    "Embedding",
    "FlatParameters",
    "Flatten",
    "Forward",
    "FrameLoss",
    "GlobalAvgPool",
    "GradientsReady",
    "GroupNorm",
    "HuberLoss",
    "Identity",
    "Layer",
    "LayerNorm",
    "Loss",
    "LossResult",
    "MAELoss",
    "MSELoss",
    "MaxPool2D",
    "Model",
    "ModelBackward",
    "ParameterShard",
    "ParameterSpec",
    "PositionalEmbedding",
    "RMSNorm",
    "ReLU",
    "Recompute",
    "RelativeL2Loss",
    "Reshape",
    "Residual",
    "Runtime",
    "SelfAttention",
    "Sequential",
    "Softmax",
    "SpectralConv",
    "Storage",
    "Unrolled",
    "WholeStorage",
]
