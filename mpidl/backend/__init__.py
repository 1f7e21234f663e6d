"""Where the arithmetic happens: one contract (ops), one implementation for CPUs, one for GPUs."""

from mpidl.backend.array import Array
from mpidl.backend.contract.base import accumulator
from mpidl.backend.ops import Ops, Workspace
from mpidl.backend.select import create_ops, ops_for

__all__ = ["Array", "Ops", "Workspace", "accumulator", "create_ops", "ops_for"]
