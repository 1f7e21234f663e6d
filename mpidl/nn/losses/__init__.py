"""Losses and their registry."""

from mpidl.nn.losses.base import Loss, LossResult
from mpidl.registry import Registry

LOSSES: Registry[type[Loss]] = Registry(
    "loss",
    "loss.name",
    {
        "bce": "mpidl.nn.losses.bce:BCEWithLogitsLoss",
        "cross_entropy": "mpidl.nn.losses.cross_entropy:CrossEntropy",
        "huber": "mpidl.nn.losses.huber:HuberLoss",
        "mae": "mpidl.nn.losses.mae:MAELoss",
        "mse": "mpidl.nn.losses.mse:MSELoss",
        "relative_l2": "mpidl.nn.losses.relative_l2:RelativeL2Loss",
    },
)

__all__ = ["LOSSES", "Loss", "LossResult"]
