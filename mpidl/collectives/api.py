"""The collective operations that the rest of mpidl calls. All work in place on one flat buffer, and by default choose for you.

Wrong arguments raise CollectiveError. Ranks that disagree on what they do are told so (in shared memory, in native rounds, and
with MPIDL_GUARD=on always); else their messages cannot meet, and the watchdog names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
from numpy import ndarray

from mpidl.collectives import checks, pairwise, ring, tree
from mpidl.collectives.combine import FLOAT16, NUMBERS, OP_CODES, is_half
from mpidl.collectives.doubling import recursive_doubling
from mpidl.collectives.execute import execute, tag_of
from mpidl.collectives.group import Group, group_of
from mpidl.collectives.hierarchical import hierarchical, in_fixed_order
from mpidl.collectives.native import native
from mpidl.collectives.rabenseifner import rabenseifner
from mpidl.collectives.schedule import Algorithm, Round, Schedule, part
from mpidl.collectives.select import choose, load_table, table_path
from mpidl.collectives.shared import FAST_CODES, digest
from mpidl.comm.transport import CHUNK, host_view, in_chunks, is_device
from mpidl.errors import CollectiveError

try:
    from mpidl._kernels.fast_shared import call as _call
except ImportError:  # built without Python.h
    _call = None

# by name; "hierarchical" depends on the placement of the ranks and is made by `algorithm_for`
ALL_REDUCE: dict[str, Algorithm] = {
    "ring": ring.ring,
    "rabenseifner": rabenseifner,
    "doubling": recursive_doubling,
    "tree": tree.tree,
    "direct": pairwise.direct,
    "native": native,
}
NAMES = (*ALL_REDUCE, "hierarchical")
MEAN = "mean"


def all_reduce(
    buffer: Any, *, comm: Any, op: str = "sum", algorithm: str = "auto", exact: bool = False, name: str = ""
) -> None:
    """Reduce `buffer` over all ranks of `comm`, in place; afterwards all ranks hold the same bits.

    buffer: (n,) array, C-contiguous and writable, in host or device memory; the same length and dtype on every rank; float16 or
    bfloat16 (both added in float32), or any real or complex dtype. comm: an mpi4py communicator or a Group.
    op: "sum", "mean", "product", "min" or "max". algorithm: "auto" or one of `NAMES`. exact: choose only among algorithms that
    sum along one binary tree over the ranks (needs a power of two of them; see mpidl.train.accumulate).
    name: what the buffer is, for error messages.
    Raises CollectiveError for a buffer that cannot be reduced in place, an unknown name, an integer mean that would
    overflow, or a float16 sum that did.
    """
    group = comm if type(comm) is Group else group_of(comm)
    fast = group.fast
    if fast is not None and algorithm == "auto" and type(buffer) is ndarray and buffer.ndim == 1 and _call is not None:
        code, op_code = FAST_CODES.get(buffer.dtype.num), OP_CODES.get(op)
        if code is not None and op_code is not None:
            group.count += 1
            group.doing = ("all_reduce", buffer, op, name)
            try:
                status = _call(fast.kernel_address, fast.node_address, buffer, code, op_code, 0, digest(name) if name else 0)
            except (BufferError, ValueError) as error:  # not contiguous, or read-only
                checks.buffer(buffer, "all_reduce", name)
                raise CollectiveError(str(error), where=name) from error
            finally:
                group.doing = None
            if status:
                fast.fail(status, name)
            return
    _all_reduce(buffer, group, op, algorithm, exact, name)


def _all_reduce(buffer: Any, group: Group, op: str, algorithm: str, exact: bool, name: str) -> None:
    checks.buffer(buffer, "all_reduce", name)
    checks.operation(op, buffer.dtype, name)
    if algorithm != "auto" and algorithm not in NAMES:
        raise CollectiveError(
            f"unknown all-reduce algorithm {algorithm!r}", where=name, remedy=f"choose one of {sorted(NAMES)}"
        )
    if group.size == 1 or not buffer.size:
        return
    chosen = algorithm_for(algorithm, buffer, group, exact)
    guarded = group.guard == "on" or (chosen is native and group.guard != "off")
    _guarded(chosen, buffer, group, op, "all_reduce", name, guarded)


def _guarded(algorithm: Algorithm, buffer: Any, group: Group, op: str, what: str, name: str, guarded: bool) -> None:
    """Run a schedule with what its operation and kind of memory need around it."""
    group.count += 1
    group.doing = (what, buffer, op, name)
    try:
        if guarded:
            checks.agreement(group, what, buffer, op, name)
        if op == MEAN or is_device(buffer) or buffer.dtype.num == FLOAT16.num:
            _with_care(algorithm, buffer, group, op, what, name)
        else:
            run(algorithm, buffer, group, op)
    finally:
        group.doing = None


def _with_care(algorithm: Algorithm, buffer: Any, group: Group, op: str, what: str, name: str) -> None:
    if what == "all_reduce" and is_device(buffer) and not group.gpu_aware and buffer.nbytes > CHUNK:
        in_chunks(buffer, lambda piece: _with_care(algorithm, piece, group, op, what, name))
        return
    with (
        host_view(buffer, group.gpu_aware) as host,
        checks.mean(host, op, group, name),
        checks.overflow(host, op, group, name, everywhere=what == "all_reduce"),
    ):
        run(algorithm, host, group, "sum" if op == MEAN else op)


def algorithm_for(name: str, buffer: Any, group: Group, exact: bool = False) -> Algorithm:
    """The schedule for an all-reduce algorithm by name; "auto" chooses."""
    half, shares = is_half(buffer.dtype), group.shares and not is_device(buffer)
    if name == "auto" and exact:
        tree_like = in_fixed_order(group.nodes) if shares else None
        return tree_like or rabenseifner
    if name == "auto":
        table = load_table(table_path())
        name = choose(buffer.nbytes, group.nodes, half=half, shared=shares, table=table)
    if name == "native" and half:
        name = "direct"
    if name == "hierarchical":
        return hierarchical(group.nodes) if shares else ring.ring
    return ALL_REDUCE[name]


def reduce(buffer: Any, *, comm: Any, root: int = 0, op: str = "sum", name: str = "") -> None:
    """Reduce over all ranks into the root's `buffer` (n,); what the others hold afterwards is undefined."""
    _rooted(tree.reduce, buffer, comm, root, op, "reduce", name)


def broadcast(buffer: Any, *, comm: Any, root: int = 0, name: str = "") -> None:
    """The root's `buffer` (n,) reaches every rank, in place."""
    _rooted(tree.broadcast, buffer, comm, root, "sum", "broadcast", name)


def gather(buffer: Any, *, comm: Any, root: int = 0, name: str = "") -> None:
    """Part r of rank r's `buffer` (n,) reaches the root's. Parts are those of `schedule.part`; other ranks' buffers serve as
    room for what they pass on.
    """
    _rooted(tree.gather, buffer, comm, root, "sum", "gather", name)


def scatter(buffer: Any, *, comm: Any, root: int = 0, name: str = "") -> Any:
    """Part r of the root's `buffer` (n,) reaches rank r; returns the view of it."""
    _rooted(tree.scatter, buffer, comm, root, "sum", "scatter", name)
    return _own(buffer, group_of(comm))


def reduce_scatter(buffer: Any, *, comm: Any, op: str = "sum", name: str = "") -> Any:
    """Reduce over all ranks; rank r keeps part r of `buffer` (n,), changed in place; returns the view of that part.

    Cost: P - 1 rounds, (P - 1) / P * n elements sent per rank (Patarasu and Yuan, 2009). The rest of the buffer is undefined.
    """
    half = is_half(buffer.dtype)
    _in_place(pairwise.direct_reduce_scatter if half else ring.reduce_scatter, buffer, comm, op, "reduce_scatter", name)
    return _own(buffer, group_of(comm))


def all_gather(buffer: Any, *, comm: Any, algorithm: str = "auto", name: str = "") -> None:
    """Part r of rank r's `buffer` (n,) reaches every rank. algorithm: "ring", "bruck", or "auto" (bruck below 64 KiB)."""
    known = {"ring": ring.all_gather, "bruck": pairwise.bruck}
    if algorithm not in (*known, "auto"):
        raise CollectiveError(
            f"unknown all-gather algorithm {algorithm!r}", where=name, remedy=f"choose one of {sorted(known)}"
        )
    if algorithm == "auto":
        algorithm = "bruck" if buffer.nbytes < 64 << 10 else "ring"
    _in_place(known[algorithm], buffer, comm, "sum", "all_gather", name)


def all_to_all(send: Any, receive: Any, *, comm: Any, name: str = "") -> None:
    """Part d of rank s's `send` (n,) becomes part s of rank d's `receive` (n,); n is a multiple of the number of ranks."""
    group = group_of(comm)
    checks.buffer(send, "all_to_all", name, writable=False)
    checks.buffer(receive, "all_to_all", name)
    if send.size != receive.size or send.size % group.size or send.dtype != receive.dtype:
        raise CollectiveError(
            f"all_to_all of {send.size} x {send.dtype} into {receive.size} x {receive.dtype} among {group.size} ranks",
            where=name,
            remedy=f"both need equal dtypes and equal lengths, a multiple of {group.size}",
        )
    both = np.empty(2 * send.size, send.dtype)
    both[: send.size] = send
    low, high = part(group.rank, group.size, send.size)
    both[send.size + low : send.size + high] = send[low:high]
    _in_place(pairwise.all_to_all, both, group, "sum", "all_to_all", name)
    receive[...] = both[send.size :]


def barrier(*, comm: Any) -> None:
    """Return once every rank has called it."""
    _in_place(pairwise.dissemination, np.zeros(2, np.uint8), comm, "sum", "barrier", "")


def send(buffer: Any, to: int, *, comm: Any, tag: int = 0) -> None:
    """Send `buffer` (n,) to rank `to`; returns once the buffer may be changed."""
    group = group_of(comm)
    checks.buffer(buffer, "send", "", writable=False)
    checks.peer(to, group, "send")
    with doing(group, "send", buffer, f"to {to}", ""), host_view(buffer, group.gpu_aware) as host:
        group.comm.Send(_wire(host), to, tag)


def recv(buffer: Any, source: int, *, comm: Any, tag: int = 0) -> None:
    """Receive into `buffer` (n,) from rank `source`. Raises CollectiveError if the message has another length."""
    from mpidl.comm import mpi

    group, status = group_of(comm), mpi.load().Status()
    checks.buffer(buffer, "recv", "")
    checks.peer(source, group, "recv")
    with doing(group, "recv", buffer, f"from {source}", ""), host_view(buffer, group.gpu_aware) as host:
        group.comm.Probe(source, tag, status)
        length = status.Get_count(mpi.load().BYTE)
        if length != host.nbytes:
            raise CollectiveError(
                f"rank {source} sent {length} bytes, but {host.nbytes} ({host.size} x {host.dtype}) are expected",
                where=f"rank {group.rank}",
                remedy="make both buffers equal in length and dtype",
            )
        group.comm.Recv(_wire(host), source, tag)


def run_rounds(rounds: Iterable[Round], buffer: Any, *, comm: Any, what: str, name: str = "") -> None:
    """Execute rounds that replace (never combine) parts of `buffer` (n,). They are asked for one by one, each while the one
    before it is under way if that is large: what the caller does between them costs no time on a slow network.
    """
    group = group_of(comm)
    with doing(group, what, buffer, "sum", name):
        execute(rounds, buffer, group, tag=tag_of(buffer.size, NUMBERS[buffer.dtype.num], 0))


def run(algorithm: Algorithm, host: Any, group: Group, op: str) -> None:
    """Execute with a tag of its own kind."""
    tag = tag_of(host.size, NUMBERS.get(host.dtype.num, 15), OP_CODES[op])
    execute(group.plan(algorithm, host.size), host, group, op=op, tag=tag)


@contextmanager
def doing(group: Group, what: str, buffer: Any, op: str, name: str) -> Iterator[None]:
    """Let the watchdog know."""
    group.count += 1
    group.doing = (what, buffer, op, name)
    try:
        yield
    finally:
        group.doing = None


def _in_place(schedule: Algorithm, buffer: Any, comm: Any, op: str, what: str, name: str) -> None:
    group = group_of(comm)
    checks.buffer(buffer, what, name)
    checks.operation(op, buffer.dtype, name)
    if group.size == 1 or not buffer.size:
        return
    _guarded(schedule, buffer, group, op, what, name, group.guard == "on")


def _rooted(schedule: Callable[..., Any], buffer: Any, comm: Any, root: int, op: str, what: str, name: str) -> None:
    checks.peer(root, group_of(comm), what)
    _in_place(_with_root(schedule, root), buffer, comm, op, what, name)


@cache
def _with_root(schedule: Callable[..., Schedule], root: int) -> Algorithm:
    return partial(schedule, root=root)


def _own(buffer: Any, group: Group) -> Any:
    low, high = part(group.rank, group.size, buffer.size)
    return buffer[low:high]


def _wire(buffer: Any) -> Any:
    return buffer.view(np.uint16) if is_half(buffer.dtype) else buffer
