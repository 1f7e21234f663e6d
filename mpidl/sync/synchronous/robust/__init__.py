"""Synchronous data-parallel SGD that outliers among the ranks do not steer."""

from mpidl.sync.synchronous.robust.strategy import Robust

__all__ = ["Robust"]
