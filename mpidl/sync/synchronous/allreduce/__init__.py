"""Synchronous data-parallel SGD by an all-reduce of gradients."""

from mpidl.sync.synchronous.allreduce.noise import NoiseScale
from mpidl.sync.synchronous.allreduce.strategy import AllReduce

__all__ = ["AllReduce", "NoiseScale"]
