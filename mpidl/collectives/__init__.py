"""Collective operations as schedules: one text that is executed over MPI, simulated in one process, and predicted at scale."""

from mpidl.collectives.api import (
    all_gather,
    all_reduce,
    all_to_all,
    barrier,
    broadcast,
    gather,
    recv,
    reduce,
    reduce_scatter,
    run_rounds,
    scatter,
    send,
)
from mpidl.collectives.group import Group, get_group

__all__ = [
    "Group",
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
