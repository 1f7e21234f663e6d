"""Whole runs with every strategy: they learn, stop, resume, and are compared."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from mpidl.sync import STRATEGIES, AsynchronousStrategy
from mpidl.train import checkpoint as ckpt
from tests.jobs.helpers import Job, finish, mpidl, start
from tests.jobs.test_bad_input import expect

VARIANTS = {name: [f"strategy={name}"] for name in STRATEGIES} | {
    "zero1": ["strategy=zero", "stage=1"],
    "zero3": ["strategy=zero", "stage=3", "bucket_mib=0.001"],
    "local": ["strategy=local_sgd", "steps=4"],
    "slow momentum": ["strategy=local_sgd", "start_epoch=0.5", "slow_momentum=0.2"],
    "push sum": ["strategy=gossip", "graph=random", "push_sum=true"],
    "random async gossip": ["strategy=async_gossip", "graph=random"],
    "bulk-synchronous": ["strategy=parameter_server", "staleness=0"],
    "stale-synchronous": ["strategy=parameter_server", "staleness=2", "servers=2"],
    "delay compensation": ["strategy=parameter_server", "delay_compensation=0.1"],
    "one-sided": ["strategy=one_sided_server", "staleness=3"],
}


def options(name: str, *more: str) -> list[str]:
    """Delays act as momentum (Mitliagkas et al., 2016): both are too much on a busy machine."""
    strategy = STRATEGIES[VARIANTS[name][0].partition("=")[2]]
    calm = ["optim.momentum=0.5"] if issubclass(strategy, AsynchronousStrategy) else []
    texts = [*(f"sync.{text}" for text in VARIANTS[name]), *calm, *more]
    return [word for text in texts for word in ("--set", text)]


def train(folder: Path, ranks: int, name: str, *more: str, flags: tuple[str, ...] = ()) -> Job:
    return mpidl(ranks, "train", str(folder / "run.toml"), "--json", *flags, *options(name, *more))


@pytest.mark.parametrize("name", VARIANTS)
def test_each_strategy_learns_stops_half_way_and_goes_on(run_folder: Path, name: str) -> None:
    """On 3 ranks, then resumed on 4: checkpoints know nothing of the ranks."""
    half = train(run_folder, 3, name, "train.max_steps=31")
    assert half.status == 0, half.err
    assert half.result["steps"] == 31
    resumed = train(run_folder, 4, name, flags=("--resume",))
    assert resumed.status == 0 and "resuming at step 31" in resumed.err, resumed.err
    result = resumed.result
    assert result["steps"] == 63 and result["accuracy"] > 0.9, result
    assert "sent_bytes" in result["strategy"]


def test_a_run_with_one_strategy_is_resumed_with_another(run_folder: Path) -> None:
    assert train(run_folder, 2, "zero", "train.max_steps=21").status == 0
    for name in ("gossip", "hogwild", "zero3"):
        resumed = train(run_folder, 3, name, flags=("--resume",))
        assert resumed.status == 0, resumed.err


def test_zero_is_resumed_where_it_was(run_folder: Path) -> None:
    """Parameters and momentum as in a straight run: on as many ranks to the last bit."""
    for stage in ("zero", "zero3"):
        output = f"train.output={run_folder}/{stage}"
        assert train(run_folder, 2, stage, output, "train.max_steps=30").status == 0
        assert train(run_folder, 2, stage, output, flags=("--resume",)).status == 0
        assert train(run_folder, 2, stage, output + "straight").status == 0
        ends = [
            ckpt.read(ckpt.list_checkpoints(run_folder / f"{stage}{end}" / "checkpoints")[0])
            for end in ("", "straight")
        ]
        for key in ends[0].buffers:
            np.testing.assert_array_equal(
                ends[0].buffers[key], ends[1].buffers[key], err_msg=f"{stage} {key}"
            )


@pytest.mark.parametrize(
    "name",
    [*STRATEGIES, "zero3", "stale-synchronous"],
)
def test_a_signal_stops_all_ranks_together(run_folder: Path, name: str) -> None:
    process = start(
        4,
        "mpidl",
        "train",
        str(run_folder / "run.toml"),
        "--json",
        *options(name, "train.epochs=4000"),
    )
    folder = run_folder / "run" / "checkpoints"
    deadline = time.monotonic() + 60
    while not ckpt.list_checkpoints(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    children = [pid for pid in pids if _launcher(pid, process.pid)]
    os.kill(children[0], signal.SIGUSR1)
    job = finish(process)
    assert job.status == 75, job.err
    assert job.result["stopped"] and job.result["steps"] > 0


def _launcher(pid: int, ancestor: int) -> bool:
    from tests.jobs.test_train import _is_mpirun

    return _is_mpirun(pid, ancestor)


def test_compare(run_folder: Path) -> None:
    job = mpidl(
        3,
        "compare",
        str(run_folder / "run.toml"),
        "--strategies",
        "allreduce local_sgd:steps=4 hogwild parameter_server",
        "--slow",
        "1:3",
        "--out",
        str(run_folder / "compared"),
        "--json",
    )
    assert job.status == 0, job.err
    outcomes = job.result["outcomes"]
    assert [one["name"] for one in outcomes] == [
        "allreduce",
        "local_sgd:steps=4",
        "hogwild",
        "parameter_server",
    ]
    assert all(one["kept"] > 0 and len(one["speeds"]) == 3 for one in outcomes)
    assert outcomes[2]["report"]["staleness"] and outcomes[0]["report"]["sent_bytes"] > 0
    for name in ("comparison.md", "comparison.json", "comparison.png"):
        assert (run_folder / "compared" / name).stat().st_size > 0
    records = json.loads((run_folder / "compared" / "comparison.json").read_text())[0]["records"]
    assert all(
        "seconds" in record and "sent_bytes" in record
        for record in records
        if record["kind"] == "step"
    )


def test_what_cannot_work_is_refused(run_folder: Path) -> None:
    toml = str(run_folder / "run.toml")

    def refuse(ranks: int, *texts: str) -> Job:
        return mpidl(ranks, "train", toml, *(word for text in texts for word in ("--set", text)))

    expect(refuse(2, "sync.strategy=zero+hogwild"), "choose one strategy", "choose one of")
    expect(
        refuse(2, "sync.strategy=zero", "sync.noise_scale=true"),
        'sync.noise_scale works with sync.strategy = "allreduce" only',
    )
    expect(
        refuse(2, "sync.strategy=parameter_server", "sync.servers=2"),
        "leave no worker",
        "at most 1",
    )
    expect(
        refuse(2, "sync.strategy=parameter_server", "sync.staleness=-1"),
        "staleness",
    )
    edges = "sync.edges=[[0, 1], [2, 3]]"
    expect(
        refuse(4, "sync.strategy=gossip", "sync.graph=custom", edges),
        "not connected",
        "add an edge",
    )
    expect(refuse(2, "sync.strategy=gossip", "sync.compression=int8"), "allreduce")
    expect(refuse(2, "sync.strategy=hogwild", "sync.sparse=true"), "momentum")
    expect(
        refuse(2, "sync.strategy=hogwild", "checkpoint.every_steps=5"),
        "checkpoint.every_steps",
        "end of each epoch",
    )
    norm = ["model.name=resnet", "model.size=tiny"]
    expect(refuse(2, "sync.strategy=hogwild", *norm), "batch norm over all ranks")
