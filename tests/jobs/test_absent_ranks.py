"""A rank that never arrives is named; errors that nobody has waited for end the job."""

from __future__ import annotations

import pytest

from tests.jobs.helpers import finish, start
from tests.jobs.test_collectives import HEAD, job

WAITS = {
    "broadcast_object": "dist.broadcast_object({'a': 1})",
    "all_gather_object": "dist.all_gather_object(rank)",
    "new_group": "dist.new_group([0, 1])",
    "scatter": "dist.scatter(np.ones(3))",
    "making the group": "from mpidl.collectives import Group; Group(CONTEXT.comm, name='late')",
    "broadcast_parameters": "dist.broadcast_parameters({'w': np.ones(3)})",
    "join": "dist.groups.world().joinable = True; dist.join()",
    "allgather": "CONTEXT.allgather_object(rank, int)",
    "bcast": "CONTEXT.bcast_object(rank, int, root=2)",
    "Barrier": "CONTEXT.barrier()",
    "allreduce": "CONTEXT.raise_on_all(None, 'testing')",
    "Bcast": "CONTEXT.comm.Bcast(np.ones(3), root=2)",
    "Gatherv": "CONTEXT.comm.Gatherv(x[:1], (x[:3], [1, 1, 1]) if rank == 0 else None, root=0)",
    "number of queued asynchronous all-reduces": "dist.all_reduce(x[:3], async_op=True).wait()",
    "of 100000 x float32": "dist.all_reduce(x, async_op=True).wait()",
}


@pytest.mark.parametrize("what", WAITS)
def test_an_absent_rank_is_named(what: str) -> None:
    code = f"""
from mpidl.comm.context import init
CONTEXT = init()
def elsewhere():
    time.sleep(40)
if rank == 2: elsewhere()
{WAITS[what]}
time.sleep(40)
"""
    ended = job(3, code, MPIDL_WATCHDOG="1.5")
    assert ended.status != 0
    assert "rank 2 has not arrived" in ended.err and "elsewhere" in ended.err, ended.err
    assert what in ended.err and ended.err.count("mpidl: error") == 1, ended.err


@pytest.mark.parametrize("limit", ["soon", "-1", "nan"])
def test_a_time_limit_that_is_none_is_refused(limit: str) -> None:
    ended = job(2, "", MPIDL_WATCHDOG=limit)
    assert ended.status != 0 and "is no time limit" in ended.err, ended.err


def test_an_error_that_nobody_waited_for_ends_the_job_at_exit() -> None:
    code = "dist.all_reduce(x, op='nonsense', async_op=True)\nprint('at the end', flush=True)"
    # the first rank that exits ends all: on a busy machine before others have come so far
    ended = job(3, f"import time\n{code}\ntime.sleep(2)")
    assert ended.status != 0 and ended.out.count("at the end") == 3
    assert "nobody has waited for failed: unknown operation 'nonsense'" in ended.err, ended.err


def test_an_error_of_one_rank_that_nobody_waited_for_ends_the_job_at_exit() -> None:
    ended = job(3, "handle = dist.all_reduce(x, 'avg', async_op=True) if rank == 1 else None")
    assert ended.status != 0 and "error on rank 1" in ended.err, ended.err


def test_operations_that_nobody_waited_for_are_done_at_exit() -> None:
    code = """
y = np.ones(5)
dist.all_reduce(y, async_op=True)
from mpidl.comm import mpi
mpi._hooks.insert(0, lambda: print("sum", y[0], flush=True))
"""
    ended = job(3, code)
    assert ended.status == 0 and ended.out.count("sum 3.0") == 3, ended.err


def test_a_message_of_more_than_two_gib() -> None:
    """Two ranks with 2^31 + 5 bytes each: Open MPI 5 refuses to count them."""
    code = """
from mpidl import collectives
from mpidl.comm.context import init
n, comm = 2**31 + 5, init().comm
y = np.zeros(n, np.uint8)
if rank == 0:
    y[[0, 2**30, 2**31 - 1, -1]] = 1, 2, 3, 4
for move in (
    lambda: collectives.broadcast(y, comm=comm),
    lambda: collectives.all_reduce(y, comm=comm),
    lambda: collectives.all_reduce(y, comm=comm, algorithm="native"),
    lambda: collectives.send(y, 1, comm=comm) if rank == 0 else collectives.recv(y, 0, comm=comm),
):
    started = time.monotonic()
    move()
    print("took", round(time.monotonic() - started, 1),
      y[[0, 2**30, 2**31 - 1, -1, 1, -2]].tolist(), flush=True)
"""
    ended = finish(start(2, "python", "-c", HEAD + code))
    assert ended.status == 0, ended.err
    for factor in (1, 2, 4, 4):
        values = [factor, 2 * factor, 3 * factor, 4 * factor, 0, 0]
        assert ended.out.count(str(values)) >= 2, ended.out
