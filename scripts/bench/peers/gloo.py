"""PyTorch's gloo, as a peer of mpidl's collectives."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed


def connect(group: Any) -> None:
    """Start torch.distributed among the ranks of an mpidl group. Collective."""
    torch.set_num_threads(1)
    name = socket.gethostname() if group.node_count > 1 else "127.0.0.1"
    host, port = group.comm.bcast((name, free_port()), root=0)
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=group.rank, world_size=group.size)


def all_reduce(buffer: Any) -> Callable[[], None]:
    """The all-reduce of a NumPy array, in place (a contender of mpidl.performance.bench)."""
    tensor = torch.from_numpy(buffer)
    return lambda: torch.distributed.all_reduce(tensor)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
