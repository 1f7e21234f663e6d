"""Collective operations as schedules.

One text is executed over MPI, simulated in one process, and predicted at scale.
"""

from mpidl.collectives.api import (
    all_gather,
    all_reduce,
    all_to_all,
    barrier,
    broadcast,
    gather,
    reduce,
    reduce_scatter,
    run_rounds,
    scatter,
)
from mpidl.collectives.group import Group, get_group
from mpidl.collectives.point_to_point import recv, send
from mpidl.collectives.window import Window

__all__ = [
    "Group",
    "Window",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "barrier",
    "broadcast",
    "gather",
    "get_group",
    "recv",
    "reduce",
    "reduce_scatter",
    "run_rounds",
    "scatter",
    "send",
]
