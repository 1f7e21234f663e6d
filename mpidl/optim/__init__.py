"""Optimizers over the flat buffer, gradient clipping, loss scaling, and learning-rate schedules."""

from mpidl.optim.adam import Adam, AdamW
from mpidl.optim.clipping import clip_by_global_norm, squared_norm
from mpidl.optim.lamb import LAMB
from mpidl.optim.lars import LARS
from mpidl.optim.optimizer import Optimizer, Parameters
from mpidl.optim.scaling import LossScaler
from mpidl.optim.schedules import LearningRate
from mpidl.optim.sgd import SGD
from mpidl.optim.state import RunState, Stateful
from mpidl.registry import Registry

OPTIMIZERS: Registry[type[Optimizer]] = Registry(
    "optimizer",
    "optim.name",
    {
        "sgd": "mpidl.optim.sgd:SGD",
        "adam": "mpidl.optim.adam:Adam",
        "adamw": "mpidl.optim.adam:AdamW",
        "lars": "mpidl.optim.lars:LARS",
        "lamb": "mpidl.optim.lamb:LAMB",
    },
)

__all__ = [
    "LAMB",
    "LARS",
    "OPTIMIZERS",
    "SGD",
    "Adam",
    "AdamW",
    "LearningRate",
    "LossScaler",
    "Optimizer",
    "Parameters",
    "RunState",
    "Stateful",
    "clip_by_global_norm",
    "squared_norm",
]
