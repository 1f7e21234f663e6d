"""The collective operations that the rest of mpidl calls. All work in place on one flat buffer, and by default choose for you.

Wrong arguments raise CollectiveError. Ranks that disagree on what they do are told so in shared memory, in native rounds, and
where a rank may only send (broadcast, reduce, gather, scatter); with MPIDL_GUARD=on always. Else their messages do not meet,
and the watchdog names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import numpy as np
from numpy import ndarray

from mpidl.collectives.algorithms import ALL_REDUCE, pairwise, ring, tree
from mpidl.collectives.algorithms.hierarchical import fixed_order, hierarchical
from mpidl.collectives.algorithms.native import native
from mpidl.collectives.algorithms.rabenseifner import rabenseifner
from mpidl.collectives.engine.execute import execute, message_tag
from mpidl.collectives.engine.reduction import FLOAT16, MEAN, NUMBERS, call_hash, is_half
from mpidl.collectives.engine.select import choose, load_table, table_path
from mpidl.collectives.engine.shared import FAST
from mpidl.collectives.group import Group, get_group
from mpidl.collectives.safety import checks
from mpidl.collectives.schedule import Algorithm, Round, Schedule, block_range, segments
from mpidl.comm import mpi, transport
from mpidl.comm.activity import Call
from mpidl.comm.transport import CHUNK, array_module, host_view, in_chunks, is_device
from mpidl.errors import CollectiveError

try:
    from mpidl._kernels.fast_shared import all_reduce as _call
except ImportError:  # built without Python.h
    _call = None

ALL_GATHER: dict[str, Algorithm] = {"ring": ring.all_gather, "bruck": pairwise.bruck}
SHORT_GATHER = 64 << 10  # bytes below which "auto" takes bruck
_make_call = tuple.__new__  # four times faster than Call(...): a microsecond is all there is
_SLOW: tuple[dict[int, int], int, int] = ({}, 0, 0)


def all_reduce(
    buffer: Any,
    *,
    comm: Any,
    op: str = "sum",
    algorithm: str = "auto",
    exact: bool = False,
    name: str = "",
) -> None:
    """Reduce `buffer` over all ranks of `comm`, in place; afterwards all ranks hold the same bits.

    buffer: (n,) array, C-contiguous and writable, in host or device memory; the same length and dtype on every rank; float16 or
    bfloat16 (both added in float32), or any real or complex dtype. comm: an mpi4py communicator or a Group.
    op: "sum", "mean", "product", "min" or "max". algorithm: "auto" or one of `ALL_REDUCE`. exact: choose only among algorithms that
    sum along one binary tree over the ranks (needs a power of two of them; see mpidl.train.accumulation).
    name: what the buffer is, for error messages.
    Raises CollectiveError for a buffer that cannot be reduced in place, an unknown name, an integer mean that would
    overflow, or a float16 sum that did.
    """
    group = comm if type(comm) is Group else get_group(comm)
    fast = group.fast
    if (
        fast is not None
        and algorithm == "auto"
        and type(buffer) is ndarray
        and buffer.ndim == 1
        and _call is not None
    ):
        codes, op_code, mark = FAST.get(op, _SLOW) if type(op) is str else _SLOW
        dtype = buffer.dtype
        code = codes.get(dtype.num)
        if code is not None and dtype.isnative:
            if name:
                mark = call_hash(Call("all_reduce", None, op, name))
            before = group.call
            group.count += 1
            group.call = _make_call(Call, ("all_reduce", buffer, op, name))
            try:
                status = _call(fast.kernel_address, fast.node_address, buffer, code, op_code, mark)
                if status:
                    fast.check(status)
            except (BufferError, ValueError) as error:  # not contiguous, or read-only
                checks.buffer(buffer, "all_reduce", name)
                raise CollectiveError(str(error), where=name) from error
            finally:
                group.call = before
            return
    _all_reduce(buffer, group, op, algorithm, exact, name)


def _all_reduce(buffer: Any, group: Group, op: str, algorithm: str, exact: bool, name: str) -> None:
    checks.buffer(buffer, "all_reduce", name)
    checks.operation(op, buffer.dtype, name)
    if algorithm != "auto" and algorithm not in ALL_REDUCE:
        raise CollectiveError(
            f"unknown all-reduce algorithm {algorithm!r}",
            where=name,
            remedy=f"choose one of {sorted(ALL_REDUCE)}",
        )
    if group.size == 1 or not buffer.size:
        return
    chosen = algorithm_for(algorithm, buffer, group, exact)
    no_kernels = group.node_count == 1 and group.shared is not None and not group.shared.compiled
    guarded = group.guard == "on" or (group.guard != "off" and (chosen is native or no_kernels))
    _guarded(chosen, buffer, group, op, Call("all_reduce", buffer, op, name), guarded)


def _guarded(
    algorithm: Algorithm,
    buffer: Any,
    group: Group,
    op: str,
    call: Call,
    guarded: bool,
) -> None:
    """Run a schedule with what its operation and kind of memory need around it.

    Args:
        call: What the watchdog and other ranks are told.
        guarded: Ranks compare their calls before.
    """
    with group.during(*call):
        if guarded:
            checks.agreement(group, buffer)
        if op == MEAN or is_device(buffer) or buffer.dtype.num == FLOAT16.num:
            _with_care(algorithm, buffer, group, op, call.what, call.name)
        else:
            run(algorithm, buffer, group, op)


def _with_care(
    algorithm: Algorithm, buffer: Any, group: Group, op: str, what: str, name: str
) -> None:
    if what == "all_reduce" and is_device(buffer) and not group.gpu_aware and buffer.nbytes > CHUNK:
        in_chunks(buffer, lambda piece: _with_care(algorithm, piece, group, op, what, name))
        return
    with (
        host_view(buffer, group.gpu_aware) as host,
        checks.overflow(host, op, group, name, everywhere=what == "all_reduce"),
    ):
        if op != MEAN or _divides(algorithm, host.dtype, group):
            run(algorithm, host, group, op)
        else:
            checks.mean(
                host, group, name, lambda total: run(algorithm, total, group, "sum"), group.size
            )


def _divides(algorithm: Algorithm, dtype: np.dtype[Any], group: Group) -> bool:
    """Whether a schedule makes means by itself: the round in shared memory, and those that complete sums in float32."""
    if dtype.kind in "iu":
        return False
    in_one_round = group.node_count == 1 and algorithm in (
        hierarchical(group.nodes),
        fixed_order(group.nodes),
    )
    return in_one_round or (
        is_half(dtype) and algorithm in (pairwise.direct, pairwise.direct_reduce_scatter)
    )


def algorithm_for(name: str, buffer: Any, group: Group, exact: bool = False) -> Algorithm:
    """The schedule for an all-reduce algorithm by name; "auto" chooses."""
    half = is_half(buffer.dtype)
    shares = group.shares and not is_device(buffer)
    if name == "auto" and exact:
        return (fixed_order(group.nodes) if shares else None) or rabenseifner
    if name == "auto":
        table = load_table(table_path())
        name = choose(buffer.nbytes, group.nodes, half=half, shared=shares, table=table)
    chosen = ALL_REDUCE[name]
    if (half and not chosen.half) or (chosen.shared_memory and not shares):
        chosen = ALL_REDUCE[chosen.fallback]
    return chosen.make(group.nodes)


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
    return _own(buffer, get_group(comm))


def reduce_scatter(buffer: Any, *, comm: Any, op: str = "sum", name: str = "") -> Any:
    """Reduce over all ranks; rank r keeps part r of `buffer` (n,), changed in place; returns the view of that part.

    Cost: P - 1 rounds, (P - 1) / P * n elements sent per rank (Patarasu and Yuan, 2009). The rest of the buffer is undefined.
    """
    checks.buffer(buffer, "reduce_scatter", name)
    schedule = pairwise.direct_reduce_scatter if is_half(buffer.dtype) else ring.reduce_scatter
    _in_place(schedule, buffer, comm, op, "reduce_scatter", name)
    return _own(buffer, get_group(comm))


def all_gather(buffer: Any, *, comm: Any, algorithm: str = "auto", name: str = "") -> None:
    """Part r of rank r's `buffer` (n,) reaches every rank. algorithm: "ring", "bruck", or "auto" (bruck below 64 KiB)."""
    checks.buffer(buffer, "all_gather", name)
    if algorithm not in (*ALL_GATHER, "auto"):
        raise CollectiveError(
            f"unknown all-gather algorithm {algorithm!r}",
            where=name,
            remedy=f"choose one of {sorted(ALL_GATHER)}",
        )
    if algorithm == "auto":
        algorithm = "bruck" if buffer.nbytes < SHORT_GATHER else "ring"
    _in_place(ALL_GATHER[algorithm], buffer, comm, "sum", "all_gather", name)


def all_to_all(send: Any, receive: Any, *, comm: Any, name: str = "") -> None:
    """Part d of rank s's `send` (n,) becomes part s of rank d's `receive` (n,); n is a multiple of the number of ranks."""
    group = get_group(comm)
    checks.buffer(send, "all_to_all", name, writable=False)
    checks.buffer(receive, "all_to_all", name)
    if send.size != receive.size or send.size % group.size or send.dtype != receive.dtype:
        raise CollectiveError(
            f"all_to_all of {send.size} x {send.dtype} into {receive.size} x {receive.dtype} among {group.size} ranks",
            where=name,
            remedy=f"both need equal dtypes and equal lengths, a multiple of {group.size}",
        )
    both = array_module(send).empty(2 * send.size, send.dtype)
    both[: send.size] = send
    low, high = block_range(group.rank, group.size, send.size)
    both[send.size + low : send.size + high] = send[low:high]
    _in_place(pairwise.all_to_all, both, group, "sum", "all_to_all", name)
    receive[...] = both[send.size :]


def barrier(*, comm: Any) -> None:
    """Return once every rank has called it."""
    _in_place(pairwise.dissemination, np.zeros(2, np.uint8), comm, "sum", "barrier", "")


def send(buffer: Any, dest: int, *, comm: Any, tag: int = 0) -> None:
    """Send `buffer` (n,) to another rank `dest`; returns once the buffer may be changed."""
    group = get_group(comm)
    checks.buffer(buffer, "send", "", writable=False)
    wire_tag = _message(dest, tag, group, "send")
    with group.during("send", buffer, f"to {dest}"), host_view(buffer, group.gpu_aware) as host:
        for start, stop in segments((0, host.size), transport.MOST):
            group.comm.Send(_wire(host[start:stop]), dest, wire_tag)


def recv(buffer: Any, source: int, *, comm: Any, tag: int = 0) -> None:
    """Receive into `buffer` (n,) from another rank `source`. Raises CollectiveError if the message has another length."""
    group = get_group(comm)
    checks.buffer(buffer, "recv", "")
    wire_tag = _message(source, tag, group, "recv")
    with group.during("recv", buffer, f"from {source}"), host_view(buffer, group.gpu_aware) as host:
        for start, stop in segments((0, host.size), transport.MOST):
            _receive(host[start:stop], source, group, wire_tag)


def _message(other: int, tag: int, group: Group, what: str) -> int:
    """The MPI tag of a message to or from another rank, after checks."""
    checks.peer(other, group, what)
    if other == group.rank:
        raise CollectiveError(
            f"{what} with rank {other}, which is this rank itself", remedy="copy the array instead"
        )
    return checks.wire_tag(tag, what)


def _receive(host: Any, source: int, group: Group, tag: int) -> None:
    MPI = mpi.load()
    status = MPI.Status()
    group.comm.Probe(source, tag, status)
    length = status.Get_count(MPI.BYTE)
    if length != host.nbytes:
        raise CollectiveError(
            f"rank {source} sent {length} bytes, but {host.nbytes} ({host.size} x {host.dtype}) are expected",
            where=f"rank {group.rank}",
            remedy="make both buffers equal in length and dtype",
        )
    group.comm.Recv(_wire(host), source, tag)


def run_rounds(
    rounds: Iterable[Round], buffer: Any, *, comm: Any, what: str, name: str = ""
) -> None:
    """Execute rounds that replace (never combine) parts of `buffer` (n,). They are asked for one by one, each while the one
    before it is under way if that is large: what the caller does between them costs no time on a slow network.
    """
    group = get_group(comm)
    checks.buffer(buffer, what, name)
    with group.during(what, buffer, "", name):
        execute(rounds, buffer, group, tag=_tag(buffer, group))


def run(algorithm: Algorithm, host: Any, group: Group, op: str) -> None:
    """Execute with a tag of its own kind."""
    execute(group.plan(algorithm, host.size), host, group, op=op, tag=_tag(host, group))


def _tag(host: Any, group: Group) -> int:
    return message_tag(host.size, NUMBERS.get(host.dtype.num, 15), call_hash(group.call))


def _in_place(
    schedule: Algorithm,
    buffer: Any,
    comm: Any,
    op: str,
    what: str,
    name: str,
    *,
    root: int | None = None,
) -> None:
    """root: of collectives in which some ranks only send. These would not notice that the others do something else."""
    group = get_group(comm)
    checks.buffer(buffer, what, name)
    checks.operation(op, buffer.dtype, name)
    one_way = root is not None
    if group.size == 1 or (not buffer.size and not one_way):
        return
    call = Call(what, buffer, f"{op}, root {root}" if one_way else op, name)
    _guarded(
        schedule,
        buffer,
        group,
        op,
        call,
        group.guard == "on" or (one_way and group.guard != "off"),
    )


def _rooted(
    schedule: Callable[..., Any], buffer: Any, comm: Any, root: int, op: str, what: str, name: str
) -> None:
    checks.peer(root, get_group(comm), what)
    _in_place(_with_root(schedule, int(root)), buffer, comm, op, what, name, root=int(root))


@cache
def _with_root(schedule: Callable[..., Schedule], root: int) -> Algorithm:
    return partial(schedule, root=root)


def _own(buffer: Any, group: Group) -> Any:
    low, high = block_range(group.rank, group.size, buffer.size)
    return buffer[low:high]


def _wire(buffer: Any) -> Any:
    return buffer.view(np.uint16) if is_half(buffer.dtype) else buffer
