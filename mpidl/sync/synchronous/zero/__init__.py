"""ZeRO: optimizer state, gradients and parameters partitioned over the ranks."""

from mpidl.sync.synchronous.zero.layout import ShardLayout, layer_buckets
from mpidl.sync.synchronous.zero.storage import PartitionedStorage
from mpidl.sync.synchronous.zero.strategy import Zero

__all__ = ["PartitionedStorage", "ShardLayout", "Zero", "layer_buckets"]
