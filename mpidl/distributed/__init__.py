"""Collectives by the names of Horovod, PaddlePaddle and torch.distributed (docs/distributed.md).

    import numpy as np
    import mpidl.distributed as dist

    dist.init()
    x = np.full(3, dist.rank(), np.float32)
    dist.all_reduce(x, op=dist.MEAN)

Arrays are NumPy or CuPy, C-contiguous, of any shape. Every rank of a group must call the same
operations in the same order. An uncaught exception on one rank ends the job; a rank that waits too
long for others ends it too, and names them (MPIDL_WATCHDOG).
"""

from mpidl.distributed.groups import (
    ProcessGroup,
    add_process_set,
    init,
    is_initialized,
    local_rank,
    local_size,
    new_group,
    rank,
    shutdown,
    size,
)
from mpidl.distributed.handles import Handle, poll, synchronize
from mpidl.distributed.joining import join
from mpidl.distributed.objects import (
    all_gather_object,
    broadcast_object,
    broadcast_optimizer_state,
    broadcast_parameters,
)
from mpidl.distributed.operations import (
    all_gather,
    all_reduce,
    alltoall,
    barrier,
    broadcast,
    gather,
    grouped_all_gather,
    grouped_all_reduce,
    recv,
    reduce,
    reduce_scatter,
    scatter,
    send,
)

SUM, MEAN, PRODUCT, MIN, MAX = "sum", "mean", "product", "min", "max"
AVERAGE = MEAN

__all__ = [
    "AVERAGE",
    "MAX",
    "MEAN",
    "MIN",
    "PRODUCT",
    "SUM",
    "Handle",
    "ProcessGroup",
    "add_process_set",
    "all_gather",
    "all_gather_object",
    "all_reduce",
    "alltoall",
    "barrier",
    "broadcast",
    "broadcast_object",
    "broadcast_optimizer_state",
    "broadcast_parameters",
    "gather",
    "grouped_all_gather",
    "grouped_all_reduce",
    "init",
    "is_initialized",
    "join",
    "local_rank",
    "local_size",
    "new_group",
    "poll",
    "rank",
    "recv",
    "reduce",
    "reduce_scatter",
    "scatter",
    "send",
    "shutdown",
    "size",
    "synchronize",
]
