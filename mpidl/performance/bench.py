"""All-reduce beside the MPI library's own call and, where PyTorch is installed, gloo; in one run, taking turns.

Bandwidths by the convention of NCCL-tests: algorithm bandwidth is bytes / time; bus bandwidth is that times 2 (P - 1) / P, what
each rank has to send at least.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from mpidl.collectives.api import NAMES, all_reduce
from mpidl.collectives.group import Group
from mpidl.comm import mpi
from mpidl.errors import ConfigError
from mpidl.performance.measure import interleaved

PEERS = ("native", "gloo")  # native: the bare call of mpi4py, without us
# a buffer of float32 -> a call that all-reduces it
Contender = Callable[[Any], Callable[[], None]]


def check(names: list[str] | None) -> None:
    """Raise ConfigError for a name that is unknown."""
    unknown = sorted(set(names or []) - {*NAMES, "auto", *PEERS})
    if unknown:
        raise ConfigError(
            f"unknown algorithm {unknown[0]!r}",
            where="--algorithms",
            remedy=f"choose from {sorted({*NAMES, 'auto', *PEERS})}",
        )


def sizes(smallest: int, largest: int, factor: int) -> list[int]:
    """Message sizes in bytes, ascending."""
    found = []
    while smallest <= largest:
        found.append(smallest)
        smallest *= factor
    return found


def contenders(group: Group, names: list[str] | None) -> dict[str, Contender]:
    """What is measured, by name. Collective: gloo connects its ranks."""
    found: dict[str, Contender] = {}
    for name in names or [
        "auto",
        *(name for name in NAMES if name != "hierarchical" or group.shares),
        *PEERS,
    ]:
        if name == "native":
            found[name] = partial(_native, group)
        elif name == "gloo":
            if _everywhere(group, importlib.util.find_spec("torch") is not None):
                _connect_gloo(group)
                found[name] = _gloo
        else:
            found[name] = partial(_ours, group, name)
    return found


def measure(
    group: Group, candidates: dict[str, Contender], nbytes: int, seconds: float
) -> list[dict[str, Any]]:
    """One row for each contender at one size. Collective."""
    calls = {name: make(np.zeros(nbytes // 4, np.float32)) for name, make in candidates.items()}
    share = 2 * (group.size - 1) / group.size
    return [
        {
            "bytes": nbytes,
            "algorithm": name,
            "median_us": 1e6 * taken,
            "algorithm_gb_s": nbytes / taken / 1e9,
            "bus_gb_s": share * nbytes / taken / 1e9,
        }
        for name, taken in interleaved(calls, group, seconds=seconds).items()
    ]


def _ours(group: Group, name: str, buffer: Any) -> Callable[[], None]:
    return lambda: all_reduce(buffer, comm=group, algorithm=name)


def _native(group: Group, buffer: Any) -> Callable[[], None]:
    MPI = mpi.load()
    bare = MPI.Intracomm(group.comm)  # without what tells the watchdog
    return lambda: bare.Allreduce(MPI.IN_PLACE, buffer, op=MPI.SUM)


def _gloo(buffer: Any) -> Callable[[], None]:
    import torch
    import torch.distributed

    tensor = torch.from_numpy(buffer)
    return lambda: torch.distributed.all_reduce(tensor)


def _everywhere(group: Group, fact: bool) -> bool:
    return bool(group.comm.allreduce(int(fact), op=mpi.load().MIN))


def _connect_gloo(group: Group) -> None:
    import torch
    import torch.distributed

    torch.set_num_threads(1)
    here = (socket.gethostname() if group.node_count > 1 else "127.0.0.1", _free_port())
    host, port = group.comm.bcast(here, root=0)
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=group.rank, world_size=group.size)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
