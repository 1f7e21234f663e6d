"""Sharded data sets: writing, reading, and the order in which samples are seen."""

from mpidl.data.loader import Batch, Loader
from mpidl.data.manifest import Field, Manifest, Shard
from mpidl.data.reader import Reader
from mpidl.data.sampler import LaneSampler

__all__ = ["Batch", "Field", "LaneSampler", "Loader", "Manifest", "Reader", "Shard"]
