"""Encrypted ranks over real MPI: the same bits as plain ones, and nothing that is not encrypted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mpidl.collectives import Group, algorithms, all_reduce, api, point_to_point
from mpidl.collectives.window import Window
from mpidl.comm import mpi, objects
from mpidl.comm.context import Context, init
from mpidl.comm.protected import is_protected
from mpidl.compression.choice import CompressionChoice
from mpidl.data import hdf5
from mpidl.errors import CollectiveError, SecurityError
from mpidl.optim import SGD
from mpidl.options import Place
from mpidl.security import encrypted_ranks, sealed_messages
from mpidl.security.channel import ChannelConfig, check_open, open_channel
from mpidl.security.encrypted_ranks import EncryptedRanks
from mpidl.security.records import Limits
from mpidl.sync import (
    AllReduce,
    AsyncGossip,
    Gossip,
    Hogwild,
    LocalSGD,
    OneSidedParameterServer,
    ParameterServer,
    StepScalars,
    Zero,
)
from tests.mpi.test_strategies import flat_of, train, work

pytest.importorskip("cryptography")
pytestmark = pytest.mark.mpi
_opened: dict[str, Context] = {}


@pytest.fixture
def plain() -> Context:
    """A context of its own: that of the process stays as it is."""
    if "plain" not in _opened:
        _opened["plain"] = init(mpi.initialize().COMM_WORLD)
    return _opened["plain"]


@pytest.fixture
def secure(plain: Context, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    """All messages encrypted, in records of 1000 bytes, with keys that change every 30 records."""
    from tests.security.ranks import credentials

    if plain.size == 1:
        pytest.skip("one rank sends nothing")
    monkeypatch.setattr(encrypted_ranks, "load_credentials", lambda named: credentials())
    monkeypatch.setattr(encrypted_ranks, "Limits", lambda records: Limits(30))
    monkeypatch.setattr(sealed_messages, "RECORD", 1000)
    if "secure" not in _opened:
        channel = ChannelConfig.read({"name": "tls-like", "scope": "all"}, Place())
        _opened["secure"] = open_channel(plain, channel, agreed={"a": 1})
    assert is_protected(_opened["secure"].comm) and _opened["secure"].channel == "all"
    yield _opened["secure"]


def test_collectives_on_buffers(secure: Context) -> None:
    MPI = mpi.load()
    comm, rank, size = secure.comm, secure.rank, secure.size
    for length in (0, 1, 500, 5001):
        own = np.arange(length, dtype=np.float64) * (rank + 1)
        for root in range(size):
            got = own.copy()
            comm.Bcast(got, root=root)
            np.testing.assert_array_equal(got, np.arange(length) * (root + 1.0))
        table = np.empty((size, length))
        comm.Allgather(own, table)
        np.testing.assert_array_equal(table, np.outer(np.arange(1, size + 1), np.arange(length)))
        counts = [length * (other % 2) + other for other in range(size)]
        joined = np.empty(sum(counts), np.uint8)
        comm.Allgatherv(np.full(counts[rank], rank, np.uint8), [joined, counts])
        np.testing.assert_array_equal(joined, np.repeat(np.arange(size), counts))
        for op, wanted in ((MPI.SUM, table.sum(0)), (MPI.MIN, table.min(0)), (MPI.MAX, table[-1])):
            total = own.copy()
            comm.Allreduce(MPI.IN_PLACE, total, op=op)
            np.testing.assert_allclose(total, wanted)
    comm.Barrier()
    assert objects.allgather(comm, "x" * rank, str) == ["x" * other for other in range(size)]
    assert secure.bcast_object(rank, int, root=size - 1) == size - 1
    assert secure.on_root(lambda: 42, "testing", int) == 42


def test_a_barrier_waits_for_all(secure: Context) -> None:
    if secure.rank == secure.size - 1:
        time.sleep(0.1)
    before = time.monotonic()
    secure.barrier()
    assert max(secure.allgather_object(before, float)) <= time.monotonic()


def test_an_error_reaches_all(secure: Context) -> None:
    with pytest.raises(SecurityError, match="mine"), secure.fail_together("testing"):
        if secure.rank == secure.size - 1:
            raise SecurityError("mine")


def test_communicators_of_some_ranks(secure: Context) -> None:
    MPI = mpi.load()
    halves = secure.comm.Split(secure.rank % 2, secure.rank)
    assert is_protected(halves)
    mine = [rank for rank in range(secure.size) if rank % 2 == secure.rank % 2]
    assert objects.allgather(halves, secure.rank, int) == mine
    backwards = secure.comm.Split(0, -secure.rank)
    wanted = list(range(secure.size))[::-1]
    assert objects.allgather(backwards, secure.rank, int) == wanted
    none = secure.comm.Split(MPI.UNDEFINED if secure.rank else 0, 0)
    assert (none == MPI.COMM_NULL) == bool(secure.rank)
    node = secure.comm.Split_type(MPI.COMM_TYPE_SHARED, secure.rank)
    assert is_protected(node) and node.Get_size() == secure.size
    for comm in (halves, backwards, node, *(() if secure.rank else (none,))):
        comm.Free()


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("algorithm", [*algorithms.ALL_REDUCE, "auto"])
def test_all_reduce_has_the_bits_of_plain_messages(
    plain: Context, secure: Context, algorithm: str, dtype: Any
) -> None:
    groups = Group(plain.comm, name="plain"), Group(secure.comm, name="secure")
    # no shared memory among encrypted ranks: the same messages in both
    chosen = {"hierarchical": "ring", "auto": "ring"}.get(algorithm, algorithm)
    for length in (1, 63, 40_001):
        draw = np.random.default_rng([length, plain.rank]).standard_normal(length)
        given = (draw * 9).astype(dtype)
        results = []
        for group, name in zip(groups, (chosen, algorithm), strict=True):
            buffer = given.copy()
            if name == "native" and group.protected:
                with pytest.raises(SecurityError, match="cannot be encrypted"):
                    all_reduce(buffer, comm=group, algorithm=name)
                continue
            all_reduce(buffer, comm=group, algorithm=name)
            results.append(buffer.tobytes())
        if algorithm != "auto" and len(results) == 2:
            assert results[0] == results[1]
        assert len(set(plain.allgather_object(results[-1], bytes))) == 1
    for group in groups:
        group.free()


def test_other_collectives_have_the_bits_of_plain_messages(plain: Context, secure: Context) -> None:
    found = []
    for context in (plain, secure):
        group, rank = Group(context.comm, name="several"), context.rank
        given = np.random.default_rng(rank).standard_normal(6 * 511 * context.size)
        done = []
        for call in (api.all_gather, api.broadcast, api.reduce_scatter, api.gather, api.scatter):
            buffer = given.copy()
            part = call(buffer, comm=group)
            done.append(buffer if part is None else part.copy())
            if call is api.gather and rank:
                done.pop()  # room for what is passed on
        received = np.empty_like(given)
        api.all_to_all(given, received, comm=group)
        api.barrier(comm=group)
        found.append([array.tobytes() for array in (*done, received)])
        group.free()
    assert found[0] == found[1]


def test_messages_between_two_ranks(secure: Context) -> None:
    group = Group(secure.comm, name="pair")
    right, left = (secure.rank + 1) % secure.size, (secure.rank - 1) % secure.size
    for length in (0, 1, 999, 1000, 1001, 70_000):
        outgoing = np.full(length, secure.rank, np.uint8)
        request = group.comm.Isend(outgoing, right, 3)
        outgoing[:] = 255  # what travels is sealed already
        incoming = np.empty(length, np.uint8)
        point_to_point.recv(incoming, left, comm=group, tag=3)
        request.Wait()
        assert (incoming == left).all()
    # several under way, completed in another order
    boxes = [np.empty(3000 + turn, np.int16) for turn in range(4)]
    receives = [group.comm.Irecv(box, left, turn) for turn, box in enumerate(boxes)]
    sends = [
        group.comm.Isend(np.full(3000 + turn, turn, np.int16), right, turn) for turn in (2, 0, 3, 1)
    ]
    while not receives[3].Test():
        pass
    group.requests.Waitall([*receives, *sends])
    assert [set(box.tolist()) for box in boxes] == [{0}, {1}, {2}, {3}]
    group.free()


def test_probing_and_messages_of_anybody(secure: Context) -> None:
    MPI = mpi.load()
    comm, status = secure.comm.Clone(), mpi.load().Status()
    if secure.rank:
        for length in (20, 5000):
            comm.Send(np.full(length, secure.rank, np.uint8), 0, 7)
    else:
        got: dict[int, list[int]] = {}
        for _ in range(2 * (secure.size - 1)):
            while not comm.Iprobe(MPI.ANY_SOURCE, 7, status):
                pass
            source, length = status.Get_source(), status.Get_count(MPI.BYTE)
            assert comm.Iprobe(source, 7, status), "it is still there"
            message = np.empty(length, np.uint8)
            comm.Recv([message, MPI.BYTE], source, 7)
            assert (message == source).all()
            got.setdefault(source, []).append(length)
        assert got == {rank: [20, 5000] for rank in range(1, secure.size)}
    comm.Barrier()
    if secure.rank:
        comm.Send(np.arange(secure.rank, dtype=np.int64), 0, 8)
    else:
        room = np.empty(100, np.int64)
        for _ in range(secure.size - 1):
            comm.Recv(room, MPI.ANY_SOURCE, MPI.ANY_TAG, status)
            source = status.Get_source()
            assert status.Get_count(MPI.BYTE) == 8 * source
            np.testing.assert_array_equal(room[:source], np.arange(source))
    comm.Barrier()
    comm.Free()


def test_a_message_of_another_length_is_told(secure: Context) -> None:
    group = Group(secure.comm, name="lengths")
    if secure.rank == 1:
        point_to_point.send(np.zeros(1500, np.uint8), 0, comm=group)
    if secure.rank == 0:
        with pytest.raises(CollectiveError, match="1500 bytes, but 8 "):
            point_to_point.recv(np.zeros(1), 1, comm=group)
        group.comm.Recv(np.zeros(1500, np.uint8), 1, 128 - 128)
    group.free()


# --- strategies ---
def compressed(name: str) -> Any:
    return CompressionChoice.read({"name": name}, Place())


def all_reduce_with(**options: Any) -> Any:
    return lambda p, c: AllReduce(p, c, AllReduce.Options(**{"algorithm": "ring"} | options))


SYNCHRONOUS: dict[str, Any] = {
    "allreduce": all_reduce_with(),
    "in a thread": all_reduce_with(overlap="thread", bucket_mib=0.001),
    "in a fixed order": all_reduce_with(algorithm="doubling"),
    "powersgd": all_reduce_with(compression=compressed("powersgd")),
    "topk": all_reduce_with(compression=compressed("topk")),
    "int8": all_reduce_with(compression=compressed("int8")),
    "zero 1": lambda p, c: Zero(p, c, Zero.Options(stage=1)),
    "zero 2": lambda p, c: Zero(p, c, Zero.Options(stage=2, bucket_mib=0.001)),
    "zero 3": lambda p, c: Zero(p, c, Zero.Options(stage=3, bucket_mib=0.001)),
}
AVERAGING: dict[str, Any] = {
    "local_sgd": lambda p, c: LocalSGD(p, c, LocalSGD.Options(steps=2)),
    "gossip": lambda p, c: Gossip(p, c, Gossip.Options(graph="ring")),
    "push-sum": lambda p, c: Gossip(p, c, Gossip.Options(graph="ring", push_sum=True)),
}


@pytest.mark.parametrize("strategy", SYNCHRONOUS)
def test_strategies_have_the_bits_of_plain_ranks(
    plain: Context, secure: Context, strategy: str
) -> None:
    results = []
    for context in (plain, secure):
        made = SYNCHRONOUS[strategy]
        values, _, _ = train(context, lambda p, made=made, c=context: made(p, c), SGD, 5)
        results.append(np.array(values))
    assert_same(results)


@pytest.mark.parametrize("strategy", AVERAGING)
def test_averaging_has_the_bits_of_plain_ranks(
    plain: Context, secure: Context, strategy: str
) -> None:
    results = []
    for context in (plain, secure):
        parameters = flat_of(1500)
        made = AVERAGING[strategy](parameters, context)
        made.start()
        draw = np.random.default_rng(context.rank)
        for _ in range(6):

            def update(parameters: Any = parameters, draw: Any = draw) -> None:
                parameters.values += draw.standard_normal(parameters.values.size)

            made.step(StepScalars(count=1), update)
        made.synchronize()
        results.append(np.array(parameters.values))
    assert_same(results)


def assert_same(results: list[Any]) -> None:
    if mpi.load().COMM_WORLD.size == 2:  # whatever the order of a sum of two is
        assert results[0].tobytes() == results[1].tobytes()
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("staleness", [0, 2, "unbounded"])
def test_parameter_servers(secure: Context, staleness: Any) -> None:
    parameters = flat_of(5000)
    strategy = ParameterServer(parameters, secure, ParameterServer.Options(staleness=staleness))
    strategy.optimizer = SGD(strategy.shard, parameters.ops, momentum=0.0)
    strategy.start()
    done = work(strategy, np.ones(parameters.length, np.float32), 10 * strategy.workers)
    strategy.synchronize()
    rounds = sum(secure.allgather_object(done, int)) / strategy.workers
    np.testing.assert_allclose(parameters.values[:5000], -0.1 * rounds, rtol=1e-5)


# --- what cannot be encrypted ---
@pytest.mark.parametrize("kind", [Hogwild, AsyncGossip, OneSidedParameterServer])
def test_strategies_in_each_others_memory_are_refused(secure: Context, kind: Any) -> None:
    with pytest.raises(SecurityError, match="unencrypted") as caught:
        kind(flat_of(20), secure, kind.Options())
    assert "sync.strategy" in caught.value.remedy


def test_what_mpi_does_by_itself_is_refused(secure: Context, tmp_path: Path) -> None:
    with pytest.raises(SecurityError, match="one-sided"):
        Window(secure.comm, 3, np.int64)
    with pytest.raises(SecurityError, match="mpio"):
        hdf5.open_file(tmp_path / "a.h5", "r", comm=secure.comm)
    assert not hdf5.is_parallel(secure.comm)
    for name in ("Alltoall", "Reduce_scatter", "allgather", "bcast", "Ibarrier", "Create"):
        with pytest.raises(SecurityError, match=f"no encrypted {name}"):
            getattr(secure.comm, name)
    with pytest.raises(TypeError):  # it is no MPI communicator, which could be used by mistake
        mpi.load().Win.Allocate(8, 1, mpi.load().INFO_NULL, secure.comm)
    with pytest.raises(SecurityError, match="cannot be encrypted"):
        AllReduce(flat_of(9), secure, AllReduce.Options(algorithm="native"))


def test_no_ranks_share_memory(secure: Context) -> None:
    group = Group(secure.comm, name="none")
    assert group.shared is None and group.fast is None and not group.shares and not group.gpu_aware
    group.free()


# --- opening ---
def test_one_node_needs_no_encryption_between_nodes(secure: Context, plain: Context) -> None:
    opened = EncryptedRanks(EncryptedRanks.Options(scope="nodes")).open(plain)
    assert opened.channel == "nodes" and opened.comm is plain.comm
    assert open_channel(opened, ChannelConfig()) is opened
    with pytest.raises(SecurityError, match="between nodes only"):
        EncryptedRanks(EncryptedRanks.Options(scope="all")).open(opened)
    assert EncryptedRanks(EncryptedRanks.Options(scope="nodes")).open(secure) is secure


def test_going_on_in_the_clear_is_refused(plain: Context, secure: Context) -> None:
    wanted = ChannelConfig.read({"name": "tls-like"}, Place())
    check_open(secure, wanted)
    check_open(plain, ChannelConfig())
    with pytest.raises(SecurityError, match="nobody has opened"):
        check_open(plain, wanted)


def test_a_rank_of_another_job_or_configuration_is_refused_on_all(
    plain: Context, secure: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.security.ranks import credentials

    last = plain.rank == plain.size - 1
    for changed in ("job", "binding", "scope", "certificate"):
        job = "job-2" if changed == "job" and last else "job-1"
        issuer = "stranger" if changed == "certificate" and last else "root"
        monkeypatch.setattr(
            encrypted_ranks, "load_credentials", lambda named, j=job, i=issuer: credentials(j, i)
        )
        scope = "nodes" if changed == "scope" and last else "all"
        channel = EncryptedRanks(EncryptedRanks.Options(scope=scope))
        binding = b"other" if changed == "binding" and last else b""
        with pytest.raises(SecurityError, match=r"not trusted|not of this site") as caught:
            channel.open(plain, binding)
        assert caught.value.agreed
