"""Encrypted ranks in whole jobs: the same results, nothing in the clear, and no going on after an
attack."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import pytest

from tests.jobs.helpers import Job, finish, start
from tests.jobs.test_network import cluster, hosts  # noqa: F401 (a fixture)
from tests.security.site import Site, make_site

pytest.importorskip("cryptography")
CHANNEL = ["security.channel.name=tls-like", "security.channel.scope=all"]
MARK = "-".join(("clear", "text", "of", "a", "rank"))  # not in any source as it travels


@pytest.fixture(scope="module")
def job_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        site = make_site(tmp_path_factory.mktemp("site"), patch)
        site.job("j1")
        yield site


@pytest.fixture
def keys(job_site: Site) -> dict[str, str]:
    """The environment of a job with a certificate."""
    return {
        "MPIDL_KEYS": str(job_site.folder / "keys"),
        "MPIDL_SITE": str(job_site.folder / "site"),
        "MPIDL_JOB_CERTIFICATE": str(job_site.keys("j1")),
    }


def script(ranks: int, code: str, **extra: str) -> Job:
    return finish(start(ranks, "python", "-c", code, **({"MPIDL_WATCHDOG": "20"} | extra)))


def parameters(folder: Path) -> str:
    """The digest of the newest checkpoint's buffers."""
    newest = max((folder / "checkpoints").glob("*.h5"))
    digest = hashlib.sha256()
    with h5py.File(newest) as file:
        for name in sorted(file):
            if isinstance(file[name], h5py.Dataset) and name != "meta":
                digest.update(file[name][()].tobytes())
    return digest.hexdigest()


def test_a_run_has_the_bits_of_a_plain_one(run_folder: Path, keys: dict[str, str]) -> None:
    found = {}
    for name, sets in {"plain": [], "secure": CHANNEL}.items():
        output = run_folder / name
        words = [w for s in [*sets, f"train.output={output}"] for w in ("--set", s)]
        done = finish(
            start(2, "mpidl", "train", str(run_folder / "run.toml"), "--json", *words, **keys)
        )
        assert done.status == 0, done.err
        assert ("all messages encrypted" in done.err) == (name == "secure"), done.err
        found[name] = (done.result["accuracy"], parameters(output))
    assert found["plain"] == found["secure"]


def test_a_run_without_a_certificate_does_not_begin(run_folder: Path) -> None:
    words = [word for text in CHANNEL for word in ("--set", text)]
    ended = finish(start(2, "mpidl", "train", str(run_folder / "run.toml"), *words))
    assert ended.status != 0 and "need a certificate of the job" in ended.err
    assert not (run_folder / "run").exists()


# --- what is on the wire ---
class Capture:
    """All packets of the loopback interface while it runs."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.2)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.packets: list[bytes] = []

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self.packets.append(self._socket.recv(1 << 17))
            except TimeoutError:
                continue

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            time.sleep(0.3)
            self._over.set()
            self._thread.join()
            self._socket.close()

    def has(self, what: bytes) -> bool:
        return any(what in packet for packet in self.packets)


TRAFFIC = f"""
import os, numpy as np
import mpidl.distributed as dist
from mpidl.collectives import all_reduce
from mpidl.comm.context import init
context = init()
dist.init()
mark = b"{MARK[:5]}" + b"{MARK[5:]}"
def marked(what):
    return np.frombuffer((mark + what + b"        ")[:32] * 4000, np.float32).copy()
gradients = marked(b"grad")
group = dist.groups.world().group()
all_reduce(gradients, comm=group, op="max", algorithm="ring")
labels = context.allgather_object(marked(b"label"), np.ndarray)
assert len(labels) == 2
context.bcast_object({{"name": "{MARK[:4]}" + "{MARK[4:]}config"}}, dict)
dist.broadcast(marked(b"param"))
print("sent")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets need root")
def test_nothing_readable_is_on_the_wire(keys: dict[str, str], job_site: Site) -> None:
    secret = job_site.identity("j1").key.private_bytes_raw()
    needles = {what: (MARK + what).encode() for what in ("grad", "label", "config", "param")}
    needles["key"] = secret
    found = {}
    for channel in ("off", "all"):
        capture = Capture()
        with capture.running():
            done = script(
                2,
                TRAFFIC,
                MPIDL_CHANNEL=channel,
                MPIDL_GUARD="off",
                OMPI_MCA_btl="tcp,self",
                OMPI_MCA_pml="ob1",
                OMPI_MCA_btl_tcp_if_include="lo",
                **keys,
            )
        assert done.status == 0 and done.out.count("sent") == 2, done.err
        assert sum(map(len, capture.packets)) > 100_000
        found[channel] = {what for what, needle in needles.items() if capture.has(needle)}
    assert found["all"] == set()
    assert found["off"] == {"grad", "label", "config", "param"}, "else this test could not fail"


# --- attacks: the job ends, on all ranks ---
ATTACK = """
import os, sys, time
import numpy as np
import mpidl.distributed as dist
from mpidl.comm.context import init
from mpidl.security import records
context = init()
dist.init()
x = np.ones(5000, np.float32)
dist.all_reduce(x)
if dist.rank() == 1:
    genuine, last = records.Sender.seal, {}
    def seal(self, place, total, plain, out):
        genuine(self, place, total, plain, out)
        %s
    records.Sender.seal = seal
for _ in range(20):
    dist.all_reduce(x, op="max")
print("went on")
"""
CHANGES = {
    "a flipped bit": "out[out.size // 2] ^= 1",
    "a replay": "last.setdefault(out.size, out.copy()); out[:] = last[out.size]",
    "clear text": "out[20:-16] = plain",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_message_that_is_not_genuine_ends_the_job(change: str, keys: dict[str, str]) -> None:
    ended = script(2, ATTACK % CHANGES[change], MPIDL_CHANNEL="all", **keys)
    assert ended.status != 0 and "went on" not in ended.out
    assert "message of rank 1: a message between ranks is not genuine" in ended.err, ended.err


def test_a_rank_without_the_channel_ends_the_job(keys: dict[str, str]) -> None:
    code = """
import os
if os.environ["OMPI_COMM_WORLD_RANK"] == "1": del os.environ["MPIDL_CHANNEL"]
import mpidl.distributed as dist
dist.init()
print("went on")
"""
    ended = script(2, code, MPIDL_CHANNEL="all", **keys)
    assert ended.status != 0 and "went on" not in ended.out
    assert "rank 0 has MPIDL_CHANNEL=all, rank 1 has off" in ended.err, ended.err


@pytest.mark.parametrize("which", ["of a person", "of another job"])
def test_a_certificate_that_does_not_fit_ends_the_job(
    which: str, keys: dict[str, str], job_site: Site
) -> None:
    if which == "of another job":
        job_site.job("j2")
    wrong = job_site.keys("j2" if which == "of another job" else "ada")
    code = f"""
import os
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    os.environ["MPIDL_JOB_CERTIFICATE"] = {str(wrong)!r}
from mpidl.comm.context import init
init()
print("went on")
"""
    extra = {"MPIDL_PASSPHRASE_FILE": str(job_site.folder / "passphrase")}
    ended = script(2, code, MPIDL_CHANNEL="all", **keys, **extra)
    assert ended.status != 0 and "went on" not in ended.out, ended.err
    assert "SecurityError" in ended.err and "rank" in ended.err, ended.err


def test_between_hosts_memory_is_shared_within_nodes(
    hosts: None,
    keys: dict[str, str],
) -> None:
    code = """
import numpy as np
import mpidl.distributed as dist
from mpidl.collectives import all_reduce
from mpidl.collectives.algorithms import ALL_REDUCE
from mpidl.comm.context import init
dist.init()
assert init().channel == "nodes"
group = dist.groups.world().group()
assert group.protected and group.node_count == 4 and group.shares and group.shared is not None
for name in ("auto", *(name for name in ALL_REDUCE if name != "native")):
    for length in (3, 100_000):
        x = np.arange(length) + float(dist.rank())
        all_reduce(x, comm=group, algorithm=name)
        assert (x == 8 * np.arange(length) + 28).all(), name
sealed = [group.comm._session.protects(rank) for rank in range(8)]
assert sum(sealed) == 6, sealed
print("fine")
"""
    done = cluster("run", "8", "python", "-c", code, MPIDL_CHANNEL="nodes", **keys)
    assert done.status == 0 and done.out.count("fine") == 8, done.err
