"""How one bucket is summed over the ranks, and who does it: this thread, or a thread beside it."""

from __future__ import annotations

from functools import partial

import numpy as np

from mpidl.backend import Array
from mpidl.collectives import Group, all_reduce
from mpidl.collectives.schedule import all_reduce_bytes
from mpidl.comm.context import Context
from mpidl.comm.thread import CommunicationThread
from mpidl.comm.transport import host_view
from mpidl.compression import Compressor
from mpidl.errors import ConfigError
from mpidl.nn import FlatParameters
from mpidl.optim import RunState
from mpidl.sync.synchronous.buckets import Bucket


class BucketExchange:
    """Sums buckets of `parameters.message` over the ranks.

    Args:
        parameters: Of the model.
        group: The ranks.
        algorithm: See `mpidl.collectives.all_reduce`.
        exact: Choose only algorithms with a fixed order of sums.
        compressor: Sums them with fewer bytes, approximately; None: exactly.
        threaded: Sum them in a thread, one after the other.

    Attributes:
        sent: Bytes that this rank has put on the wire.
    """

    def __init__(
        self,
        parameters: FlatParameters,
        group: Group,
        *,
        algorithm: str,
        exact: bool,
        compressor: Compressor | None,
        threaded: bool,
    ) -> None:
        self.parameters = parameters
        self.group = group
        self.algorithm = algorithm
        self.exact = exact
        self.compressor = compressor
        self.thread = CommunicationThread() if threaded else None
        self._sent = 0

    @property
    def sent(self) -> int:
        """Bytes that this rank has put on the wire."""
        return self._sent + (self.compressor.sent if self.compressor is not None else 0)

    def begin(self, bucket: Bucket) -> None:
        """Sum a bucket, now or in the thread."""
        if self.thread is None:
            self._sum(bucket)
            return
        if self.parameters.ops.xp is not np:
            # the thread reads what the stream of this thread has written
            self.parameters.ops.synchronize()
        self.thread.submit(partial(self._sum, bucket))

    def finish(self) -> None:
        """Return once all buckets are summed; raises what the thread has raised."""
        if self.thread is not None:
            self.thread.drain()

    def _sum(self, bucket: Bucket) -> None:
        part = self.parameters.message[bucket.start : bucket.stop]
        if self.compressor is not None:
            self._sum_compressed(part, bucket, self.compressor)
            return
        self._sent += all_reduce_bytes(part.nbytes, self.group.size)
        all_reduce(
            part, comm=self.group, algorithm=self.algorithm, exact=self.exact, name=bucket.name
        )

    def _sum_compressed(self, part: Array, bucket: Bucket, compressor: Compressor) -> None:
        layout = bucket.layout(self.parameters)
        with host_view(part, aware=compressor.on_device) as values:
            compressor.reduce(values, self.group, bucket.name, layout)
            end = 0
            # padding is zero by contract, but a compressor without a zero (sign) has filled it
            for start, stop, _ in [*layout, (len(values), len(values), ())]:
                values[end:start] = 0
                end = stop


def choose_overlap(wanted: str, group: Group, context: Context, on_host: bool) -> str:
    """How gradients leave during backward: "thread", "layers" or "off".

    Args:
        wanted: One of these, or "auto": a thread where it can win, that is between nodes or with
            a GPU.
        group: The ranks.
        context: Says whether MPI allows several threads.
        on_host: Whether the gradients lie in host memory.

    Raises:
        ConfigError: A thread is wanted, but MPI does not allow it.
    """
    if wanted == "auto":
        gains = group.node_count > 1 or not on_host
        wanted = ("thread" if context.threads_allowed else "layers") if gains else "off"
    if wanted == "thread" and not context.threads_allowed:
        raise ConfigError(
            "this MPI does not allow several threads",
            where="sync.overlap",
            remedy='use "layers", "off" or "auto"',
        )
    return wanted


def split_state(state: RunState, buckets: set[str]) -> RunState:
    """Take out of a compressor's state what belongs to buckets that do not exist.

    Args:
        state: Names of arrays are "kind:bucket", perhaps with ", part N" behind.
        buckets: The names of those that do exist.

    Returns:
        What was taken out.
    """
    other = RunState()
    for target, source in ((other.shared, state.shared), (other.own, state.own)):
        for name in list(source):
            _, colon, bucket = name.partition(":")
            if colon and bucket.split(":")[0].split(", part")[0] not in buckets:
                target[name] = source.pop(name)
    return other
