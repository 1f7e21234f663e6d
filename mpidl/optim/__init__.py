"""Optimizers over the flat buffer, gradient clipping, and learning-rate schedules."""

from mpidl.optim.adam import Adam
from mpidl.optim.layerwise import LAMB, LARS
from mpidl.optim.optimizer import Optimizer, Parameters, clip_by_global_norm, squared_norm
from mpidl.optim.scaling import LossScaler
from mpidl.optim.schedules import LearningRate
from mpidl.optim.sgd import SGD
from mpidl.optim.state import RunState, Stateful

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "Adam",
    "LearningRate",
    "LossScaler",
    "Optimizer",
    "Parameters",
    "RunState",
    "Stateful",
    "clip_by_global_norm",
    "squared_norm",
]
