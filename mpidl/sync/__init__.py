"""How the ranks keep their replicas together."""

from mpidl.sync.allreduce import AllReduce
from mpidl.sync.strategy import StepScalars, Strategy

__all__ = ["AllReduce", "StepScalars", "Strategy"]
