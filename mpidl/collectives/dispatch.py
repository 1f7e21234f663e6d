"""From a checked call to its schedule: choose, record, compare, bring memory to where MPI reads it.

The layer between the public functions (`api`) and the engine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidl.collectives.algorithms import ALL_REDUCE, pairwise
from mpidl.collectives.algorithms.hierarchical import fixed_order, hierarchical
from mpidl.collectives.algorithms.rabenseifner import rabenseifner
from mpidl.collectives.algorithms.ring import ring, sealed_ring
from mpidl.collectives.engine.execute import execute, message_tag
from mpidl.collectives.engine.reduction import FLOAT16, MEAN, NUMBERS, call_hash, is_half
from mpidl.collectives.engine.select import choose, load_table, table_path
from mpidl.collectives.group import Group
from mpidl.collectives.safety import checks
from mpidl.collectives.schedule import Algorithm
from mpidl.comm.activity import Call
from mpidl.comm.transport import CHUNK, host_view, in_chunks, is_device


def algorithm_for(name: str, buffer: Any, group: Group, exact: bool = False) -> Algorithm:
    """The schedule of an all-reduce.

    Args:
        name: One of `ALL_REDUCE`, or "auto", which chooses.
        buffer: (n,) array, for its length, dtype and kind of memory.
        group: For the placement of its ranks.
        exact: With "auto": only algorithms that sum along one binary tree over the ranks.

    Raises:
        SecurityError: The messages of these ranks are encrypted, and MPI's own would not be.
    """
    half = is_half(buffer.dtype)
    shares = group.shares and not is_device(buffer)
    if name == "auto" and exact:
        return (fixed_order(group.nodes) if shares else None) or rabenseifner
    if name == "auto":
        table = load_table(table_path())
        name = choose(buffer.nbytes, group.nodes, half=half, shared=shares, table=table)
        if name == "native" and group.protected:
            name = "doubling"
    checks.encryptable(name, group)
    chosen = ALL_REDUCE[name]
    if (half and not chosen.half) or (chosen.shared_memory and not shares):
        chosen = ALL_REDUCE[chosen.fallback]
    made = chosen.make(group.nodes)
    sealed = made is ring and group.protected and group.node_count == 1
    return sealed_ring if sealed else made


def run(algorithm: Algorithm, call: Call, group: Group, op: str, *, compare: bool) -> None:
    """Run a schedule on a call's buffer, in place, with what its operation and memory need.

    Args:
        algorithm: The schedule.
        call: What the watchdog and other ranks are told.
        group: The ranks.
        op: The reduction.
        compare: Ranks compare their calls before (the guard).
    """
    buffer = call.buffer
    with group.recording(call):
        if compare:
            checks.agreement(group, buffer)
        if op == MEAN or is_device(buffer) or buffer.dtype.num == FLOAT16.num:
            _run_staged(algorithm, buffer, group, op, call)
        else:
            _run_plan(algorithm, buffer, group, op)


def _run_staged(algorithm: Algorithm, buffer: Any, group: Group, op: str, call: Call) -> None:
    """With staging in host memory, float16 overflow checks and the division of a mean."""
    everywhere = call.what == "all_reduce"
    if everywhere and is_device(buffer) and not group.gpu_aware and buffer.nbytes > CHUNK:
        in_chunks(buffer, lambda piece: _run_staged(algorithm, piece, group, op, call))
        return
    with (
        host_view(buffer, group.gpu_aware) as host,
        checks.overflow(host, op, group, call.name, everywhere=everywhere),
    ):
        if op != MEAN or _divides(algorithm, host.dtype, group):
            _run_plan(algorithm, host, group, op)
        else:

            def add(total: Any) -> None:
                _run_plan(algorithm, total, group, "sum")

            checks.mean(host, group, call.name, add, group.size)


def _run_plan(algorithm: Algorithm, host: Any, group: Group, op: str) -> None:
    plan = group.plan(algorithm, host.size)
    execute(plan, host, group, op=op, tag=tag_of_call(host, group))


def tag_of_call(host: Any, group: Group) -> int:
    """The message tag of the call in progress on `host`."""
    return message_tag(host.size, NUMBERS.get(host.dtype.num, 15), call_hash(group.call))


def _divides(algorithm: Algorithm, dtype: np.dtype[Any], group: Group) -> bool:
    """Whether a schedule makes means by itself.

    The round in shared memory does, and those that complete a 16-bit sum in float32.
    """
    if dtype.kind in "iu":
        return False
    shared = hierarchical(group.nodes), fixed_order(group.nodes)
    if group.node_count == 1 and algorithm in shared:
        return True
    return is_half(dtype) and algorithm in (pairwise.direct, pairwise.direct_reduce_scatter)
