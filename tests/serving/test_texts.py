"""Texts through the server: real engines behind ranks without MPI."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidl.backend import create_ops
from mpidl.generation import Request, Sampling
from mpidl.generation.decoder import CacheKind
from mpidl.generation.engine import generate
from mpidl.generation.text import Coder, Stream
from mpidl.models import build_layers
from mpidl.nn import Model
from mpidl.serving import texts
from mpidl.serving.errors import InvalidRequest, ServingError
from mpidl.serving.messages import (
    Buffer,
    Head,
    Kind,
    Start,
    Step,
    pack_object,
    unpack,
    unpack_object,
)
from mpidl.serving.server import InferRequest
from mpidl.serving.text_body import parse_text
from mpidl.serving.texts import Texts
from tests.serving import helpers
from tests.serving.helpers import FakeLink, Made

CONTEXT = 40


def tiny() -> Model:
    layers = build_layers("gpt", (CONTEXT,), 256, {"width": 16, "depth": 1, "heads": 2})
    return Model(layers, (CONTEXT,), create_ops("numpy"))


class Writers(FakeLink):
    """Ranks that write texts; a step is one pass."""

    def __init__(self, ranks: int = 1) -> None:
        super().__init__(ranks)
        self.writers = {rank: Texts(SimpleNamespace(model=tiny())) for rank in self.ranks}
        self.steps: list[tuple[int, Step]] = []
        self.broken = False

    def send(self, rank: int, message: Buffer) -> None:
        if unpack(message)[0].kind == Kind.STEP and self.hold:
            self.held.append((rank, message))
            return
        super().send(rank, message)

    def answer(self, rank: int, message: Buffer) -> None:
        head, body = unpack(message)
        done = Head(Kind.DONE, head.handle, head.number, head.rows, input=1, infer=10, output=1)
        if head.kind == Kind.LOAD:
            about = msgspec.structs.replace(helpers.ABOUT, vocabulary=256, context=CONTEXT)
            self.received(rank, pack_object(done, about))
        elif head.kind == Kind.STEP:
            step = unpack_object(body, Step)
            self.steps.append((rank, step))
            if self.broken:
                self.writers[rank].reset()
                self.received(rank, pack_object(done._replace(kind=Kind.FAILED), "a pass failed"))
            else:
                self.received(rank, pack_object(done, self.writers[rank].step(step)))
        else:
            super().answer(rank, message)


@pytest.fixture(autouse=True)
def _short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "SECONDS", 0.0)


def with_writers(folder: Path, test: Any, *, ranks: int = 1, **options: Any) -> None:
    async def run() -> None:
        made = Made(folder, Writers(ranks), **options)
        try:
            await made.repository.load("m")
            async with asyncio.timeout(30):
                await test(made)
                await asyncio.sleep(0.01)
            version = made.repository.find("m")
            assert version.users == 0 and version.generation is not None
            assert version.generation.count == 0 and made.server.pending_bytes == 0
        finally:
            made.dispatcher.close()

    asyncio.run(run())


def expect(prompt: str, tokens: int, **sampling: Any) -> str:
    request = Request(list(prompt.encode()), tokens, Sampling(**sampling))
    return Coder(256).decode(generate(tiny(), [request])[0].tokens)


def body_of(prompt: str, **parameters: Any) -> bytes:
    return json.dumps({"text_input": prompt, "parameters": parameters}).encode()


async def write(made: Made, prompt: str, **parameters: Any) -> tuple[int, dict[str, Any]]:
    status, found = await made.post("/v2/models/m/generate", body_of(prompt, **parameters))
    return status, json.loads(found)


async def stream(
    made: Made, prompt: str, leave_after: int | None = None, **parameters: Any
) -> tuple[int, list[dict[str, Any]]]:
    """Status and events; the client leaves after some of them."""
    gone, sent = asyncio.Event(), []
    content = [{"type": "http.request", "body": body_of(prompt, **parameters)}]

    async def receive() -> dict[str, Any]:
        if content:
            return content.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if leave_after is not None and len(sent) > leave_after:
            gone.set()
            await asyncio.sleep(0)

    path = "/v2/models/m/versions/1/generate_stream"
    await made.application(
        {"type": "http", "method": "POST", "path": path, "headers": []}, receive, send
    )
    body = b"".join(message.get("body", b"") for message in sent)
    if dict(sent[0]["headers"])[b"content-type"].startswith(b"application/json"):
        return sent[0]["status"], [json.loads(body)]
    assert dict(sent[0]["headers"])[b"content-type"] == b"text/event-stream; charset=utf-8"
    *events, rest = body.split(b"\n\n")
    assert rest == b"" and all(event.startswith(b"data: ") for event in events)
    return sent[0]["status"], [json.loads(event[6:]) for event in events]


def test_whole_and_streamed_texts(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        wanted = expect("abc", 30, seed=5)
        status, found = await write(made, "abc", max_tokens=30, seed=5)
        assert status == 200 and found["text_output"] == wanted
        assert found["done"] and found["details"] == {
            "finish_reason": "length", "tokens": 30, "seed": 5,
        }  # fmt: skip
        status, events = await stream(made, "abc", max_tokens=30, seed=5)
        assert status == 200 and "".join(e["text_output"] for e in events) == wanted
        assert len(events) > 3 and [e["done"] for e in events] == [False] * (len(events) - 1) + [
            True
        ]
        assert found["details"] == events[-1]["details"]
        # without a seed one is drawn, and said
        _, drawn = await write(made, "abc", max_tokens=30)
        assert drawn["text_output"] == expect("abc", 30, seed=drawn["details"]["seed"])
        # the text ends where the context of the model does
        _, found = await write(made, "abc", max_tokens=10**6, temperature=0)
        assert found["details"]["tokens"] == CONTEXT - 3 + 1
        stats = made.server.statistics("m")[0]
        assert stats["inference_count"] == 4 and stats["inference_stats"]["success"]["count"] == 4
        _, metrics = await made.post("/metrics", method="GET")
        assert b'mpidl_tokens_generated{model="m",version="1"} 128' in metrics
        assert b'mpidl_first_token_seconds_count{model="m",version="1"} 4' in metrics
        _, config = await made.post("/v2/models/m/config", method="GET")
        assert json.loads(config)["parameters"]["generate"] == {"string_value": "true"}

    with_writers(tmp_path, test)


def test_texts_beside_each_other_and_beside_batches(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        asked = [write(made, "ab" * k, max_tokens=12, seed=k) for k in range(1, 9)]
        tokens = [np.array([[k, k]]) for k in range(9)]
        sums = [made.server.infer(InferRequest("m", "", "", [("x", x)])) for x in tokens]
        found = await asyncio.gather(*asked, *sums)
        for k in range(1, 9):
            assert found[k - 1][1]["text_output"] == expect("ab" * k, 12, seed=k)
        assert [one.outputs[0][1].tolist() for one in found[8:]] == [[2 * k] for k in range(9)]
        assert {rank for rank, _ in made.link.steps} == {1, 2, 3}

    with_writers(tmp_path, test, ranks=3)


def test_texts_with_a_cache_of_int8() -> None:
    model, prompt = tiny(), tuple(b"abcdef")
    model.parameters.initialize(5)
    found: dict[str, list[int]] = {}
    kinds: tuple[CacheKind, ...] = ("float", "int8")
    for kind in kinds:
        writer = Texts(SimpleNamespace(model=model), 64, kind)
        step, found[kind] = Step((Start(1, prompt, (), 20, 0.9, 0, 1.0, 3),)), []
        ended: tuple[Any, ...] = ()
        while not ended:
            done = writer.step(step)
            found[kind] += [token for _, tokens in done.written for token in tokens]
            step, ended = Step(), done.ended
        (alone,) = generate(model, [Request(prompt, 20, Sampling(0.9, seed=3))], cache=kind)
        assert tuple(found[kind]) == alone.tokens and ended == ((1, "length"),)


def test_stop_texts(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        whole = expect("abc", 30, seed=5)
        stop = whole[7:9]
        status, found = await write(made, "abc", max_tokens=30, seed=5, stop=["zzzzz", stop])
        assert status == 200 and found["text_output"] == whole[: whole.index(stop)]
        assert found["details"]["finish_reason"] == "stop"
        _, events = await stream(made, "abc", max_tokens=30, seed=5, stop=stop)
        assert "".join(e["text_output"] for e in events) == found["text_output"]

    with_writers(tmp_path, test)


def test_a_client_that_goes_away_ends_its_text(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        other = asyncio.create_task(write(made, "xyz", max_tokens=20, seed=1))
        _, events = await stream(made, "abc", leave_after=2, max_tokens=35, seed=5)
        assert 1 <= len(events) < 30 and not events[-1]["done"]
        assert (await other)[1]["text_output"] == expect("xyz", 20, seed=1)
        assert sum(len(step.cancel) for _, step in made.link.steps) == 1
        assert made.server.statistics("m")[0]["inference_count"] == 1
        assert made.repository.find("m").stats.cancel == 1

    with_writers(tmp_path, test)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_the_texts_of_a_lost_rank_go_on_elsewhere(tmp_path: Path, steps: int) -> None:
    async def test(made: Made) -> None:
        made.link.hold = True
        tasks = [asyncio.create_task(write(made, "ab" * k, max_tokens=15, seed=k)) for k in (1, 2)]
        await asyncio.sleep(0.01)
        for _ in range(steps):
            made.link.release()
            await asyncio.sleep(0.01)
        assert len(made.link.held) == 2
        lost = made.link.held[0][0]
        made.link.held = [(rank, message) for rank, message in made.link.held if rank != lost]
        made.link.hold = False
        made.link.lost(lost)
        made.link.release()
        for k, (status, found) in zip((1, 2), await asyncio.gather(*tasks), strict=True):
            assert status == 200 and found["text_output"] == expect("ab" * k, 15, seed=k)

    with_writers(tmp_path, test, ranks=2)


def test_texts_that_ranks_die_of_are_not_tried_for_ever(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        made.link.hold = True
        task = asyncio.create_task(write(made, "ab", max_tokens=15))
        for _ in range(2):
            await asyncio.sleep(0.01)
            made.link.lost(made.link.held.pop()[0])
        status, found = await task
        assert status == 503 and "lost" in found["error"]
        made.link.hold = False
        assert (await write(made, "ab", max_tokens=5))[0] == 200
        made.link.lost(next(w.rank for w in made.dispatcher.workers if w.alive))
        await asyncio.sleep(0.01)
        assert (await write(made, "ab", max_tokens=5))[0] == 503

    with_writers(tmp_path, test, ranks=3)


def test_a_step_that_fails_is_an_error_of_its_texts(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        made.link.broken = True
        assert (await write(made, "ab", max_tokens=5))[0] == 500
        made.link.broken = False
        made.link.hold = True
        task = asyncio.create_task(stream(made, "abc", max_tokens=15, seed=5))
        for _ in range(12):
            await asyncio.sleep(0.01)
            made.link.release()
        made.link.broken, made.link.hold = True, False
        made.link.release()
        status, events = await task
        assert status == 200 and "a pass failed" in events[-1]["error"]
        made.link.broken = False
        assert (await write(made, "ab", max_tokens=5))[0] == 200

    with_writers(tmp_path, test)


def test_limits(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        made.link.hold = True
        tasks = [asyncio.create_task(write(made, "a", max_tokens=3)) for _ in range(2)]
        await asyncio.sleep(0.01)
        status, found = await write(made, "a", max_tokens=3)
        assert status == 503 and "2 texts are being written" in found["error"]
        made.link.hold = False
        made.link.release()
        assert [status for status, _ in await asyncio.gather(*tasks)] == [200, 200]
        made.link.hold = True
        status, found = await write(made, "a", max_tokens=3, timeout=2000)
        assert status == 503 and "timeout expired" in found["error"]
        made.link.hold = False
        made.link.release()

    with_writers(tmp_path, test, max_queue_size=2)


@pytest.mark.parametrize(
    "tree",
    [
        {}, [], "x", {"text_input": 1}, {"text_input": ""}, {"text_input": "x" * 41},
        {"text_input": "a", "parameters": {"max_tokens": 0}},
        {"text_input": "a", "parameters": {"max_tokens": 1.5}},
        {"text_input": "a", "parameters": {"max_new_tokens": 5}},
        {"text_input": "a", "parameters": {"temperature": -1}},
        {"text_input": "a", "parameters": {"top_p": 0}},
        {"text_input": "a", "parameters": {"seed": -1}},
        {"text_input": "a", "parameters": {"stop": [""]}},
        {"text_input": "a", "parameters": {"stop": ["a"] * 17}},
        {"text_input": "a", "images": []},
    ],
)  # fmt: skip
def test_bad_requests(tmp_path: Path, tree: object) -> None:
    async def test(made: Made) -> None:
        for what in ("generate", "generate_stream"):
            status, body = await made.post(f"/v2/models/m/{what}", json.dumps(tree).encode())
            assert status == 400 and json.loads(body)["error"], tree
        assert made.link.steps == []
        assert (await made.post("/v2/models/n/generate", b"{}"))[0] == 404

    with_writers(tmp_path, test)


def test_a_model_that_writes_nothing(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        status, found = await write(made, "abc")
        assert status == 400 and "writes no texts" in found["error"]

    helpers.with_server(tmp_path, test)


def test_draining_waits_for_texts(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        made.link.hold = True
        task = asyncio.create_task(write(made, "ab", max_tokens=15, seed=1))
        await asyncio.sleep(0.01)
        draining = asyncio.create_task(made.server.drain())
        await asyncio.sleep(0.01)
        assert (await write(made, "ab"))[0] == 503 and not draining.done()
        made.link.hold = False
        made.link.release()
        assert (await task)[1]["text_output"] == expect("ab", 15, seed=1)
        assert await draining

    with_writers(tmp_path, test)


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_body_is_parsed_or_refused(body: bytes) -> None:
    try:
        parse_text(body, "m", "")
    except InvalidRequest:
        return


NAMES = ["max_tokens", "temperature", "top_k", "top_p", "seed", "stop", "timeout", "stream"]
values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text())


@given(st.dictionaries(st.sampled_from(NAMES), values))
def test_any_parameters_are_parsed_or_refused(parameters: dict[str, Any]) -> None:
    try:
        found = parse_text(body_of("a", **parameters), "m", "")
    except ServingError:
        return
    assert 1 <= found.max_tokens <= 1 << 20 and all(found.stop)


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3), st.data())
def test_streams_are_cut_at_the_first_stop_text(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    if text and data.draw(st.booleans()):
        low = data.draw(st.integers(0, len(text) - 1))
        stops.append(text[low : low + 3])
    made = Stream(Coder(256), stops)
    parts = []
    for token in text.encode():
        if not made.stopped:
            parts.append(made.add(token))
            assert text.startswith("".join(parts))
    parts.append(made.rest())
    # what is read one character after another ends with the first stop text that is complete
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(s) for s in stops)]
    first = ends[0] if ends else None
    wanted = (
        text
        if first is None
        else text[: min(text[:first].find(s) for s in stops if s in text[:first])]
    )
    assert "".join(parts) == wanted
    assert made.stopped == (first is not None)


@given(st.binary(max_size=40))
def test_streams_of_any_bytes_are_their_text(content: bytes) -> None:
    made = Stream(Coder(256))
    found = "".join(made.add(token) for token in content) + made.rest()
    assert found == content.decode(errors="replace")
