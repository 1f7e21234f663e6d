"""Tasks: what a model is trained for."""

from mpidl.task.base import Scored, Source, Task
from mpidl.task.choice import AUTO, TASKS, TaskConfig, check_loss
from mpidl.task.metrics import Evaluation, Metric, describe_metrics, format_metric, is_share
from mpidl.task.spec import FieldSpec, InputSpec, TargetSpec

__all__ = [
    "AUTO",
    "TASKS",
    "Evaluation",
    "FieldSpec",
    "InputSpec",
    "Metric",
    "Scored",
    "Source",
    "TargetSpec",
    "Task",
    "TaskConfig",
    "check_loss",
    "describe_metrics",
    "format_metric",
    "is_share",
]
