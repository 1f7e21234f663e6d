"""Collectives in whole jobs: ranks that never arrive, die, stop or disagree; measuring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpidl.compression import COMPRESSORS
from tests.jobs.helpers import Job, finish, mpidl, start

HEAD = """
import os, signal, sys, time
import numpy as np
import mpidl.distributed as dist
dist.init()
rank, x = dist.rank(), np.ones(100_000, np.float32)
dist.all_reduce(x)
"""


def job(ranks: int, code: str, **extra: str) -> Job:
    return finish(start(ranks, "python", "-c", HEAD + code, **({"MPIDL_WATCHDOG": "2"} | extra)))


def test_the_watchdog_names_a_rank_that_has_not_arrived() -> None:
    ended = job(
        3, "def elsewhere():\n    time.sleep(60)\nif rank == 1: elsewhere()\ndist.all_reduce(x)"
    )
    assert ended.status != 0
    assert "rank 1 has not arrived" in ended.err and "elsewhere" in ended.err, ended.err
    assert ended.err.count("mpidl: error") == 1 and "100000 x float32" in ended.err


@pytest.mark.parametrize("length", [10, 3_000_000])
def test_the_watchdog_names_a_stopped_rank(length: int) -> None:
    ended = job(
        2,
        f"y = np.ones({length})\n"
        "if rank == 1: os.kill(os.getpid(), signal.SIGSTOP)\n"
        "dist.all_reduce(y)",
    )
    assert ended.status != 0 and "rank 1 does not answer" in ended.err, ended.err


def test_no_room_for_shared_memory() -> None:
    """A file-size limit stands for a full /dev/shm."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
group = dist.new_group(range(dist.size()))
dist.all_reduce(x, group=group)
print("sum", x.min(), x.max())
"""
    ended = job(3, code)
    assert ended.status == 0 and ended.out.count("sum 9.0 9.0") == 3, ended.err
    assert ended.err.count("/dev/shm has no room") == 1


def test_messages_of_different_calls_never_meet() -> None:
    code = """
from mpidl.collectives import all_reduce
from mpidl.comm.context import init
y = np.ones(40_000 if rank == 0 else 40_001, np.float32)
all_reduce(y, comm=init().comm, algorithm="ring", name=f"bucket {rank}")
print("came back")
"""
    ended = job(2, code)
    assert ended.status != 0 and "came back" not in ended.out
    assert (
        "is in another collective" in ended.err
        and "bucket 0" in ended.err
        and "bucket 1" in ended.err
    ), ended.err
    guarded = job(2, code, MPIDL_GUARD="on")
    assert (
        guarded.status != 0
        and "the ranks disagree on the collective: rank 0: all_reduce (sum) of 40000" in guarded.err
    )


def test_an_exception_on_one_rank_ends_the_job() -> None:
    ended = job(
        3,
        "if rank == 2: raise ValueError('no data on this rank')\ndist.all_reduce(x)",
        MPIDL_WATCHDOG="60",
    )
    assert ended.status != 0 and "no data on this rank" in ended.err


def test_a_dead_peer_ends_the_job() -> None:
    ended = job(
        3,
        "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ndist.all_reduce(x)",
        MPIDL_WATCHDOG="60",
    )
    assert ended.status != 0


def test_training_with_a_stopped_rank_ends(run_folder: Path) -> None:
    code = f"""
import os, signal, sys
from mpidl.cli.main import main
from mpidl.sync.synchronous.allreduce import AllReduce
steps, step = [], AllReduce.step
def stop(self, scalars, update):
    steps.append(1)
    if len(steps) == 3 and self.context.rank == 1: os.kill(os.getpid(), signal.SIGSTOP)
    return step(self, scalars, update)
AllReduce.step = stop
sys.exit(main(["train", "{run_folder}/run.toml", "--set", "sync.watchdog=2"]))
"""
    ended = finish(start(2, "python", "-c", code))
    assert (
        ended.status != 0 and "rank 1 does not answer" in ended.err and "all gradients" in ended.err
    ), ended.err


def test_buckets_and_threads_change_no_bit(run_folder: Path) -> None:
    losses = set()
    for settings in (
        ["sync.overlap=off"],
        ["sync.overlap=thread"],
        ["sync.overlap=layers"],
        ["sync.tune_buckets=true", "sync.overlap=thread"],
    ):
        options = [item for setting in settings for item in ("--set", setting)]
        options += ["--set", "sync.bucket_mib=0.001"] if "tune" not in settings[0] else []
        ended = mpidl(2, "train", f"{run_folder}/run.toml", "--overwrite", "--json", *options)
        assert ended.status == 0, ended.err
        losses.add(ended.result["loss"])
    assert len(losses) == 1, losses


def test_an_error_on_one_rank_between_buckets(run_folder: Path) -> None:
    code = f"""
import sys
from mpidl.cli.main import main
from mpidl.sync.synchronous.allreduce import AllReduce
ready, calls = AllReduce.on_gradients_ready, []
def fail(self, start, stop):
    calls.append(1)
    if len(calls) == 8 and self.context.rank == 1: raise RuntimeError("broken layer")
    ready(self, start, stop)
AllReduce.on_gradients_ready = fail
sets = ["--set", "sync.overlap=thread", "--set", "sync.bucket_mib=0.001"]
sys.exit(main(["train", "{run_folder}/run.toml", *sets]))
"""
    ended = finish(start(2, "python", "-c", code))
    assert ended.status == 1 and "broken layer" in ended.err, ended.err


@pytest.mark.parametrize("name", COMPRESSORS)
def test_compressed_training_learns(run_folder: Path, name: str) -> None:
    options = [
        "--set",
        "optim.lr=0.02",
        "--set",
        "train.epochs=8",
        "--set",
        "sync.compression.ratio=0.05",
    ]
    ended = mpidl(
        2,
        "train",
        f"{run_folder}/run.toml",
        "--json",
        "--set",
        f"sync.compression.name={name}",
        *options,
    )
    assert ended.status == 0, ended.err
    assert ended.result["accuracy"] > 0.9, ended.result


def test_tune_writes_the_table_that_auto_reads(tmp_path: Path) -> None:
    table = tmp_path / "tune.json"
    ended = mpidl(2, "tune", "--largest-mib", "0.1", "--json", MPIDL_TUNE=str(table))
    assert ended.status == 0, ended.err
    held = json.loads(table.read_text())
    assert held["all_reduce"]["2x1"][0][0] == 0
    code = """
from mpidl.collectives import get_group
from mpidl.collectives.dispatch import algorithm_for
from mpidl.collectives.algorithms.tree import tree
assert algorithm_for("auto", x, get_group(dist.groups.world().group().comm)) is tree
"""
    held["all_reduce"]["2x1"] = [[0, "tree"]]
    table.write_text(json.dumps(held))
    assert job(2, code, MPIDL_TUNE=str(table)).status == 0


def test_bench_prints_the_documented_json(tmp_path: Path) -> None:
    options = ["--largest-mib", "0.01", "--seconds", "0.05", "--plot", str(tmp_path / "plot.png")]
    ended = mpidl(2, "bench", "collectives", "--json", "--algorithms", "auto,ring,native", *options)
    assert ended.status == 0, ended.err
    rows = ended.result["results"]
    assert {row["algorithm"] for row in rows} == {"auto", "ring", "native"} and {
        row["bytes"] for row in rows
    } >= {4, 4096}
    assert all(row["median_us"] > 0 and row["bus_gb_s"] > 0 for row in rows)
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    machine = tmp_path / "machine.json"
    assert mpidl(2, "bench", "network", "--output", str(machine)).status == 0
    planned = mpidl(1, "plan", "--json", "--machine", str(machine), "--ranks", "8").result
    assert planned["machine"]["ranks_per_node"] == 2 and planned["steps"][0]["nodes"] == 4


def test_measuring_alone_is_refused() -> None:
    for command in (["bench", "collectives"], ["tune"]):
        ended = mpidl(1, *command)
        assert ended.status == 1 and "mpirun -n 2" in ended.err
    assert "unknown algorithm" in mpidl(2, "bench", "collectives", "--algorithms", "rnig").err
