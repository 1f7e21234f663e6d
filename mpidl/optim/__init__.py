"""Optimizers over the flat buffer, and learning-rate schedules."""

from mpidl.optim.schedules import LearningRate
from mpidl.optim.sgd import SGD

__all__ = ["SGD", "LearningRate"]
