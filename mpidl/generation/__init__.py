"""Texts from language models: tokens one after another, with a cache of keys and values."""

from mpidl.generation.engine import Engine, Finished, Request
from mpidl.generation.sampling import Sampling

__all__ = ["Engine", "Finished", "Request", "Sampling"]
