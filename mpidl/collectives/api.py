"""The collective operations that the rest of mpidl calls.

All work in place on one flat buffer, and by default choose the algorithm. Wrong arguments raise
CollectiveError. Ranks that disagree on what they do are told so in shared memory, in native rounds,
and where a rank may only send (broadcast, reduce, gather, scatter); with MPIDL_GUARD=on always.
Else their messages do not meet, and the watchdog names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy import ndarray

from mpidl.collectives.algorithms import ALL_GATHER, ALL_REDUCE, pairwise, ring, tree
from mpidl.collectives.algorithms.native import native
from mpidl.collectives.dispatch import algorithm_for, run, tag_of_call
from mpidl.collectives.engine.execute import execute
from mpidl.collectives.engine.reduction import hash_words, is_half
from mpidl.collectives.engine.shared import FAST
from mpidl.collectives.group import Group, get_group
from mpidl.collectives.safety import checks
from mpidl.collectives.schedule import Algorithm, Round, Schedule, block_range
from mpidl.comm.activity import Call
from mpidl.comm.transport import array_module
from mpidl.errors import CollectiveError

if TYPE_CHECKING:
    from mpi4py import MPI as MPITypes

try:
    from mpidl._kernels.fast_shared import all_reduce as _fast_all_reduce
except ImportError:  # built without Python.h
    _fast_all_reduce = None

Ranks: TypeAlias = "MPITypes.Intracomm | Group"

SHORT_GATHER = 64 << 10  # bytes below which "auto" takes bruck
_SLOW: tuple[dict[int, int], int, int] = ({}, 0, 0)


def all_reduce(
    buffer: Any,
    *,
    comm: Ranks,
    op: str = "sum",
    algorithm: str = "auto",
    exact: bool = False,
    name: str = "",
) -> None:
    """Reduce `buffer` over all ranks, in place; afterwards all ranks hold the same bits.

    Args:
        buffer: (n,) array, C-contiguous and writable, in host or device memory; the same length and
            dtype on every rank; float16 or bfloat16 (both added in float32), or any real or complex
            dtype.
        comm: The ranks: an mpi4py communicator or a Group.
        op: "sum", "mean", "product", "min" or "max".
        algorithm: "auto" or one of `ALL_REDUCE`.
        exact: "auto" chooses only among algorithms that sum along one binary tree over the ranks
            (needs a power of two of them; see mpidl.train.accumulation).
        name: What the buffer is, for error messages.

    Raises:
        CollectiveError: The buffer cannot be reduced in place, a name is unknown, an integer mean
            would overflow, or a float16 sum did.
    """
    group = comm if type(comm) is Group else get_group(comm)
    fast = group.fast
    # The short way into shared memory: `_all_reduce` does the same, but its checks, the choice and
    # the plan take 5 us where the reduction of a small array takes 2. What this way cannot take
    # goes on below, and so do wrong arguments, which are named there.
    if (
        fast is not None
        and algorithm == "auto"
        and type(buffer) is ndarray
        and buffer.ndim == 1
        and _fast_all_reduce is not None
    ):
        codes, op_code, mark = FAST.get(op, _SLOW) if type(op) is str else _SLOW
        dtype = buffer.dtype
        code = codes.get(dtype.num)
        if code is not None and dtype.isnative:
            if name:
                mark = hash_words("all_reduce", op, name)
            # by hand what `recording` does: that takes half a microsecond
            before = group.in_progress
            group.count += 1
            group.in_progress = ("all_reduce", buffer, op, name)
            try:
                status = _fast_all_reduce(
                    fast.kernel_address, fast.node_address, buffer, code, op_code, mark
                )
                if status:
                    fast.check(status)
            except (BufferError, ValueError) as error:  # not contiguous, or read-only
                checks.buffer(buffer, "all_reduce", name)
                raise CollectiveError(str(error), where=name) from error
            finally:
                group.in_progress = before
            return
    _all_reduce(buffer, group, op, algorithm, exact, name)


def _all_reduce(buffer: Any, group: Group, op: str, algorithm: str, exact: bool, name: str) -> None:
    checks.buffer(buffer, "all_reduce", name)
    checks.operation(op, buffer.dtype, name)
    if algorithm != "auto":
        checks.known(algorithm, ALL_REDUCE, name)
    if group.size == 1 or not buffer.size:
        return
    chosen = algorithm_for(algorithm, buffer, group, exact)
    no_kernels = group.node_count == 1 and group.shared is not None and not group.shared.compiled
    compare = group.guard == "on" or (group.guard != "off" and (chosen is native or no_kernels))
    run(chosen, Call("all_reduce", buffer, op, name), group, op, compare=compare)


def reduce(buffer: Any, *, comm: Ranks, root: int = 0, op: str = "sum", name: str = "") -> None:
    """Reduce over all ranks into the root's `buffer` (n,); the others' contents are undefined."""
    _run_rooted(tree.reduce, Call("reduce", buffer, op, name), comm, root)


def broadcast(buffer: Any, *, comm: Ranks, root: int = 0, name: str = "") -> None:
    """The root's `buffer` (n,) reaches every rank, in place."""
    _run_rooted(tree.broadcast, Call("broadcast", buffer, "sum", name), comm, root)


def gather(buffer: Any, *, comm: Ranks, root: int = 0, name: str = "") -> None:
    """Block r of rank r's `buffer` (n,) reaches the root's.

    Blocks are those of `schedule.block_range`; other ranks' buffers serve as room for what they
    pass on.
    """
    _run_rooted(tree.gather, Call("gather", buffer, "sum", name), comm, root)


def scatter(buffer: Any, *, comm: Ranks, root: int = 0, name: str = "") -> Any:
    """Block r of the root's `buffer` (n,) reaches rank r; returns the view of it."""
    _run_rooted(tree.scatter, Call("scatter", buffer, "sum", name), comm, root)
    return _own_block(buffer, get_group(comm))


def reduce_scatter(buffer: Any, *, comm: Ranks, op: str = "sum", name: str = "") -> Any:
    """Reduce over all ranks; rank r keeps block r.

    P - 1 rounds, (P - 1) / P * n elements sent per rank (Patarasu and Yuan, 2009).

    Args:
        buffer: (n,) array, changed in place; outside of the own block it is then undefined.
        comm: The ranks.
        op: As of `all_reduce`.
        name: What the buffer is, for error messages.

    Returns:
        The view of the own block.
    """
    checks.buffer(buffer, "reduce_scatter", name)
    schedule = pairwise.direct_reduce_scatter if is_half(buffer.dtype) else ring.reduce_scatter
    _run_in_place(schedule, Call("reduce_scatter", buffer, op, name), comm)
    return _own_block(buffer, get_group(comm))


def all_gather(buffer: Any, *, comm: Ranks, algorithm: str = "auto", name: str = "") -> None:
    """Block r of rank r's `buffer` (n,) reaches every rank.

    Args:
        buffer: (n,) array, changed in place.
        comm: The ranks.
        algorithm: One of `ALL_GATHER`, or "auto": bruck below 64 KiB.
        name: What the buffer is, for error messages.
    """
    checks.buffer(buffer, "all_gather", name)
    if algorithm == "auto":
        algorithm = "bruck" if buffer.nbytes < SHORT_GATHER else "ring"
    checks.known(algorithm, ALL_GATHER, name)
    _run_in_place(ALL_GATHER[algorithm], Call("all_gather", buffer, "sum", name), comm)


def all_to_all(send: Any, receive: Any, *, comm: Ranks, name: str = "") -> None:
    """Block d of rank s's `send` becomes block s of rank d's `receive`.

    Args:
        send: (n,) array; n is a multiple of the number of ranks.
        receive: (n,) array of the same dtype.
        comm: The ranks.
        name: What the buffer is, for error messages.
    """
    group = get_group(comm)
    checks.buffer(send, "all_to_all", name, writable=False)
    checks.buffer(receive, "all_to_all", name)
    if send.size != receive.size or send.size % group.size or send.dtype != receive.dtype:
        raise CollectiveError(
            f"all_to_all of {send.size} x {send.dtype} into {receive.size} x {receive.dtype} "
            f"among {group.size} ranks",
            where=name,
            remedy=f"both need equal dtypes and equal lengths, a multiple of {group.size}",
        )
    both = array_module(send).empty(2 * send.size, send.dtype)
    both[: send.size] = send
    low, high = block_range(group.rank, group.size, send.size)
    both[send.size + low : send.size + high] = send[low:high]
    _run_in_place(pairwise.all_to_all, Call("all_to_all", both, "sum", name), group)
    receive[...] = both[send.size :]


def barrier(*, comm: Ranks) -> None:
    """Return once every rank has called it."""
    _run_in_place(pairwise.dissemination, Call("barrier", np.zeros(2, np.uint8), "sum"), comm)


def run_rounds(
    rounds: Iterable[Round], buffer: Any, *, comm: Ranks, what: str, name: str = ""
) -> None:
    """Execute rounds that replace (never reduce) ranges of `buffer`.

    Args:
        rounds: Asked for one by one, each while the one before it is in flight if that is large:
            what the caller does between them costs no time on a slow network.
        buffer: (n,) array.
        comm: The ranks.
        what: The operation, for the watchdog.
        name: What the buffer is, for error messages.
    """
    group = get_group(comm)
    checks.buffer(buffer, what, name)
    with group.during(what, buffer, "", name):
        execute(rounds, buffer, group, tag=tag_of_call(buffer, group))


def _run_in_place(schedule: Algorithm, call: Call, comm: Ranks, *, root: int | None = None) -> None:
    """Check and run a call.

    Args:
        schedule: The algorithm.
        call: Its `op` is the reduction.
        comm: The ranks.
        root: Of collectives in which some ranks only send: these compare their calls before, since
            a rank that only sends would not notice that the others do something else.
    """
    group = get_group(comm)
    what, buffer, op, name = call
    checks.buffer(buffer, what, name)
    checks.operation(op, buffer.dtype, name)
    rooted = root is not None
    if group.size == 1 or (not buffer.size and not rooted):
        return
    compare = group.guard == "on" or (rooted and group.guard != "off")
    told = call._replace(op=f"{op}, root {root}") if rooted else call
    run(schedule, told, group, op, compare=compare)


def _run_rooted(schedule: Callable[..., Schedule], call: Call, comm: Ranks, root: int) -> None:
    checks.peer(root, get_group(comm), call.what)
    _run_in_place(_with_root(schedule, int(root)), call, comm, root=int(root))


@cache  # the same object for the same root: plans are cached by it
def _with_root(schedule: Callable[..., Schedule], root: int) -> Algorithm:
    return partial(schedule, root=root)


def _own_block(buffer: Any, group: Group) -> Any:
    low, high = block_range(group.rank, group.size, buffer.size)
    return buffer[low:high]
