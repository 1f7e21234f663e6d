"""The server without sockets and models: errors, limits, lost ranks, versions, draining."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mpidl.serving.errors import Unavailable
from mpidl.serving.messages import Head, Kind, pack, unpack
from mpidl.serving.server import InferRequest
from mpidl.serving.settings import ServerSettings
from tests.serving.helpers import Made, rows_of, with_server


def sums(body: bytes) -> list[float]:
    found: list[float] = msgspec.json.decode(body)["outputs"][0]["data"]
    return found


def test_requests_that_wait_become_one_batch(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        made.link.hold = True
        tasks = [asyncio.create_task(made.infer((0, k), (1, k))) for k in range(6)]
        await asyncio.sleep(0.05)
        made.link.hold = False
        made.link.release()
        answers = await asyncio.gather(*tasks)
        assert [sums(body) for _, body in answers] == [[k, k + 1] for k in range(6)]
        assert sum(made.link.batches) == 12 and len(made.link.batches) < 6
        stats = made.server.statistics("m")[0]
        assert stats["inference_count"] == 12 and stats["inference_stats"]["success"]["count"] == 6
        assert sum(one["compute_infer"]["count"] for one in stats["batch_stats"]) == len(
            made.link.batches
        )
        _, metrics = await made.post("/metrics", method="GET")
        assert b'nv_inference_count{model="m",version="1"} 12' in metrics

    with_server(tmp_path, test, max_queue_delay_microseconds=1000)


@pytest.mark.parametrize(
    ("path", "tree", "status"),
    [
        ("/v2/models/m/infer", {"inputs": []}, 400),
        ("/v2/models/m/infer", {"inputs": [{}]}, 400),
        ("/v2/models/m/infer", "y", 400),
        ("/v2/models/m/infer", ("FP32", [1, 3], [1, 2, 3]), 400),
        ("/v2/models/m/infer", ("FP32", [2], [1, 2]), 400),
        ("/v2/models/m/infer", ("FP32", [], [1]), 400),
        ("/v2/models/m/infer", ("FP32", [0, 2], []), 400),
        ("/v2/models/m/infer", ("BYTES", [1, 2], ["1", "2"]), 400),
        ("/v2/models/m/infer", ("BOOL", [1, 2], [True, False]), 400),
        ("/v2/models/m/infer", ("FP32", [40, 2], [0] * 80), 400),
        ("/v2/models/other/infer", ("FP32", [1, 2], [1, 2]), 404),
        ("/v2/models/../m/infer", ("FP32", [1, 2], [1, 2]), 404),
        ("/v2/models/m/versions/2/infer", ("FP32", [1, 2], [1, 2]), 404),
        ("/v2/models/m/versions/x/infer", ("FP32", [1, 2], [1, 2]), 404),
        ("/v2/repository/models/..%2Fm/load", {}, 404),
        ("/v2/repository/models/m/load", {"parameters": {"config": "{}"}}, 400),
        ("/v2/systemsharedmemory/region/a/register", {}, 404),
    ],
)
def test_bad_requests_get_their_own_error(
    tmp_path: Path, path: str, tree: object, status: int
) -> None:
    async def test(made: Made) -> None:
        content = tree
        if isinstance(tree, tuple):
            names = ("datatype", "shape", "data")
            content = {"inputs": [{"name": "x", **dict(zip(names, tree, strict=True))}]}
        elif tree == "y":
            one = {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
            content = {"inputs": [one]}
        found, body = await made.post(path, msgspec.json.encode(content))
        assert found == status, body
        assert json.loads(body)["error"]
        assert made.link.batches == []
        assert (await made.infer((1, 2)))[0] == 200

    with_server(tmp_path, test)


def test_other_dtypes_are_converted(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        for dtype in (np.uint8, np.int16, np.int64, np.float16, np.float64):
            array = np.array([[3, 4]], dtype)
            found = await made.server.infer(InferRequest("m", "", "", [("x", array)]))
            np.testing.assert_array_equal(found.outputs[0][1], [7])

    with_server(tmp_path, test)


def test_a_full_queue_and_a_passed_deadline_are_refused(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        made.link.hold = True
        computed = [asyncio.create_task(made.infer((k, k))) for k in range(2)]
        await asyncio.sleep(0.02)
        late = asyncio.create_task(made.infer((5, 5), timeout=1000))
        waits = asyncio.create_task(made.infer((6, 6)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        status, body = await made.infer((7, 7))
        assert status == 503 and b"maximum queue size" in body
        status, body = await late
        assert status == 503 and b"timeout expired" in body
        made.link.hold = False
        made.link.release()
        assert [sums(body) for _, body in await asyncio.gather(*computed, waits)] == [
            [0], [2], [12],
        ]  # fmt: skip

    settings = ServerSettings(in_flight=2)
    with_server(tmp_path, test, max_queue_size=2, max_batch_size=1, server=settings)


def test_large_and_cut_off_requests_hold_no_memory(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        big = b"[" * 5000
        assert (await made.post("/v2/models/m/infer", big))[0] == 413
        assert (await made.post("/v2/models/m/infer", b"", content_length="999999"))[0] == 413
        bomb = gzip.compress(b" " * 3_000_000)
        assert len(bomb) < 4096
        status, _ = await made.post("/v2/models/m/infer", bomb, content_encoding="gzip")
        assert status == 413
        for coding, content in (("gzip", b"123"), ("gzip", gzip.compress(b"{}")[:-3]), ("br", b"")):
            status, _ = await made.post("/v2/models/m/infer", content, content_encoding=coding)
            assert status == 400
        chunks = [b"{" for _ in range(50)]
        assert (await made.send("/v2/models/m/infer", [*chunks, None]))[0] == 0  # it went away
        assert made.server.pending_bytes == 0
        one = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
        packed = gzip.compress(msgspec.json.encode({"inputs": [one]}))
        status, body = await made.post("/v2/models/m/infer", packed, content_encoding="gzip")
        assert status == 200 and sums(body) == [3]

    with_server(tmp_path, test, server=ServerSettings(max_request_bytes=4096))


def test_slow_writers_are_refused(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        scope = {"type": "http", "method": "POST", "path": "/v2/models/m/infer", "headers": []}
        sent = []

        async def receive() -> dict[str, object]:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b"{", "more_body": True}

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        await made.application(scope, receive, send)
        assert sent[0]["status"] == 503

    with_server(tmp_path, test, server=ServerSettings(body_timeout=0.2))


def test_a_client_that_goes_away_leaves_the_queue(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        made.link.hold = True
        first = asyncio.create_task(made.infer((1, 1)))
        await asyncio.sleep(0.02)
        one = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
        content = msgspec.json.encode({"inputs": [one]})
        scope = {"type": "http", "method": "POST", "path": "/v2/models/m/infer", "headers": []}
        messages = [
            {"type": "http.request", "body": content, "more_body": False},
            {"type": "http.disconnect"},
        ]

        async def receive() -> dict[str, object]:
            return messages.pop(0)

        await made.application(scope, receive, lambda message: asyncio.sleep(0))
        made.link.hold = False
        made.link.release()
        assert (await first)[0] == 200
        assert made.link.batches == [1]
        assert made.server.statistics("m")[0]["inference_count"] == 1
        assert made.repository.find("m").users == 0

    with_server(tmp_path, test, server=ServerSettings(in_flight=1))


def test_a_lost_rank_s_requests_run_on_another(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        made.link.hold = True
        tasks = [asyncio.create_task(made.infer((k, k))) for k in range(4)]
        await asyncio.sleep(0.05)
        lost = made.link.held[0][0]
        made.link.held = [(rank, message) for rank, message in made.link.held if rank != lost]
        made.link.hold = False
        made.link.lost(lost)
        made.link.release()
        assert [sums(body) for _, body in await asyncio.gather(*tasks)] == [[0], [2], [4], [6]]
        assert made.server.ready
        other = 3 - lost
        made.link.lost(other)
        await asyncio.sleep(0.02)
        assert (await made.infer((1, 1)))[0] == 503
        assert not made.server.ready and not made.server.model_ready("m")

    with_server(tmp_path, test, ranks=2, max_batch_size=1)


def test_a_model_of_a_lost_rank_is_opened_on_another(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        version = made.repository.find("m")
        for _ in range(2):
            (worker,) = (worker for worker in version.lane.workers if worker.alive)
            made.link.lost(worker.rank)
            await asyncio.sleep(0.02)
            assert (await made.infer((1, 1)))[0] == 200
        made.link.lost(next(w.rank for w in version.lane.workers if w.alive))
        await asyncio.sleep(0.02)
        assert (await made.infer((1, 1)))[0] == 503 and not made.server.ready

    with_server(tmp_path, test, ranks=3, instances=1)


def test_a_request_that_ranks_die_of_is_not_tried_for_ever(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        made.link.hold = True
        task = asyncio.create_task(made.infer((1, 1)))
        for _ in range(2):
            await asyncio.sleep(0.02)
            made.link.lost(made.link.held.pop()[0])
        status, body = await task
        assert status == 503 and b"was lost" in body
        made.link.hold = False
        assert (await made.infer((1, 1)))[0] == 200

    with_server(tmp_path, test, ranks=3)


def test_a_rank_that_hangs_counts_as_lost(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        made.link.hold = True
        task = asyncio.create_task(made.infer((1, 1)))
        await asyncio.sleep(0.02)
        made.link.hold = False
        made.dispatcher.workers[0].since -= int(1e12)
        made.dispatcher.workers[1].since -= int(1e12)
        status, body = await task
        assert status == 200 and sums(body) == [2]
        assert sum(worker.alive for worker in made.dispatcher.workers) == 1

    with_server(tmp_path, test, ranks=2)


def test_a_new_version_takes_over_without_losing_a_request(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        before = made.repository.find("m")
        await made.repository.load("m")
        assert made.repository.find("m") is before  # nothing is new
        made.link.hold = True
        tasks = [asyncio.create_task(made.infer((k, k))) for k in range(5)]
        await asyncio.sleep(0.02)
        os.utime(tmp_path / "m.h5", (1, 1))
        status, _ = await made.post("/v2/repository/models/m/load")
        assert status == 200
        after = made.repository.find("m")
        assert after is not before
        await asyncio.sleep(0.02)
        assert made.link.unloaded == []
        made.link.hold = False
        made.link.release()
        assert [sums(body) for _, body in await asyncio.gather(*tasks)] == [
            [0], [2], [4], [6], [8],
        ]  # fmt: skip
        await asyncio.sleep(0.02)
        assert made.link.unloaded == [before.lane.handle]
        assert (await made.infer((1, 1)))[0] == 200

    with_server(tmp_path, test, max_batch_size=1)


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        (tmp_path / "m.h5").unlink()
        status, body = await made.post("/v2/repository/models/m/load")
        assert status == 503 and b"no checkpoint" in body
        assert (await made.infer((1, 1)))[0] == 200

    with_server(tmp_path, test)


def test_unload_waits_and_refuses(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        made.link.hold = True
        task = asyncio.create_task(made.infer((1, 1)))
        await asyncio.sleep(0.02)
        assert (await made.post("/v2/repository/models/m/unload"))[0] == 200
        assert (await made.infer((1, 1)))[0] == 503
        _, body = await made.post("/v2/repository/index")
        assert json.loads(body)[0]["state"] == "UNAVAILABLE"
        made.link.hold = False
        made.link.release()
        assert sums((await task)[1]) == [2]
        await asyncio.sleep(0.02)
        assert made.link.unloaded == [1] and not made.dispatcher.scheduler.lanes
        assert (await made.post("/v2/repository/models/m/load"))[0] == 200
        assert (await made.infer((1, 1)))[0] == 200

    with_server(tmp_path, test)


def test_draining_answers_what_waits_and_refuses_the_rest(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        made.link.hold = True
        tasks = [asyncio.create_task(made.infer((k, k))) for k in range(3)]
        await asyncio.sleep(0.02)
        drained = asyncio.create_task(made.server.drain())
        await asyncio.sleep(0.02)
        assert (await made.post("/v2/health/ready", method="GET"))[0] == 503
        assert (await made.post("/v2/health/live", method="GET"))[0] == 200
        assert (await made.infer((1, 1)))[0] == 503
        assert not drained.done()
        made.link.hold = False
        made.link.release()
        assert [status for status, _ in await asyncio.gather(*tasks)] == [200] * 3
        assert await drained

    with_server(tmp_path, test, max_batch_size=2)


def test_too_many_bytes_at_once_are_refused(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        made.server.reserve(1024)
        with pytest.raises(Unavailable, match="max_pending_bytes"):
            made.server.reserve(2**20)
        status, body = await made.post("/v2/models/m/infer", b" " * 2000)
        assert status == 503 and b"max_pending_bytes" in body
        made.server.release(1024)

    settings = ServerSettings(max_request_bytes=4096, max_pending_bytes=2048)
    with_server(tmp_path, test, server=settings)


def test_rows_do_not_get_mixed_up(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        rng = np.random.default_rng(0)
        counts = [int(n) for n in rng.integers(1, 5, 40)]
        arrays = [rows_of(n) * (k + 1) for k, n in enumerate(counts)]
        requests = [InferRequest("m", "", str(k), [("x", a)]) for k, a in enumerate(arrays)]
        answers = await asyncio.gather(*(made.server.infer(request) for request in requests))
        for k, (array, answer) in enumerate(zip(arrays, answers, strict=True)):
            assert answer.id == str(k)
            np.testing.assert_array_equal(answer.outputs[0][1], array.sum(axis=1))
        assert max(made.link.batches) <= 8

    with_server(tmp_path, test, max_batch_size=8)


def test_an_answer_of_the_wrong_size_fails_its_requests_only(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        made.link.hold = True
        task = asyncio.create_task(made.infer((1, 1)))
        await asyncio.sleep(0.02)
        made.link.hold = False
        rank, message = made.link.held.pop()
        head, _ = unpack(message)
        made.link.received(rank, pack(Head(Kind.DONE, head.handle, head.number, 9)))
        assert (await task)[0] == 500
        assert (await made.infer((1, 1)))[0] == 200

    with_server(tmp_path, test)
