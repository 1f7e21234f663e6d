"""Collective operations as schedules: one text that is executed over MPI and simulated in one process."""

from mpidl.collectives.api import all_reduce

__all__ = ["all_reduce"]
