"""The page's files and headers, and the histogram that its percentiles come from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidl.serving.latency import LIMITS, Histogram
from mpidl.serving.page import FILES, FOLDER
from tests.serving.helpers import Made, with_server


async def get(made: Made, path: str) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": path, "headers": []}
    await made.application(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def test_files_and_their_policy(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        for name, (file, kind) in FILES.items():
            status, headers, body = await get(made, f"/ui/{name}")
            assert status == 200 and body == (FOLDER / file).read_bytes()
            assert headers[b"content-type"] == kind
            assert b"default-src 'self'" in headers[b"content-security-policy"]
            assert headers[b"x-content-type-options"] == b"nosniff"
        status, headers, _ = await get(made, "/ui")
        assert (status, headers[b"location"]) == (307, b"ui/")

    with_server(tmp_path, test)


@pytest.mark.parametrize(
    "path",
    ["/ui/../http.py", "/ui/__init__.py", "/ui//etc/passwd", "/ui/app.js/", "//ui", "/ui/\0"],
)
def test_no_other_files(tmp_path: Path, path: str) -> None:
    async def test(made: Made) -> None:
        status, headers, body = await get(made, path)
        assert status == 404 and b"error" in body and headers[b"content-type"].endswith(b"json")

    with_server(tmp_path, test)


def test_files_keep_the_policy() -> None:
    """Nothing inline, nothing from elsewhere, and no text that becomes elements."""
    assert {file for file, _ in FILES.values()} | {"__init__.py"} == {
        path.name for path in FOLDER.iterdir() if path.is_file()
    }
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?! type=\"module\" src=)|<style|\sstyle=|\son\w+=", page)
    for file, _ in FILES.values():
        text = (FOLDER / file).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//cdn" not in text and not re.search(r"https?://", text)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", text)


def test_requests_are_in_the_histogram(tmp_path: Path) -> None:
    async def test(made: Made) -> None:
        for _ in range(3):
            assert (await made.infer((1, 2)))[0] == 200
        assert (await made.infer((1, 2), timeout=-1))[0] == 400
        text = (await get(made, "/metrics"))[2].decode()
        name = "mpidl_request_duration_seconds"
        assert f'{name}_count{{model="m",version="1"}} 3' in text
        assert f'{name}_bucket{{model="m",version="1",le="+Inf"}} 3' in text
        assert 'mpidl_rank_up{rank="1"} 1' in text
        assert 'mpidl_rank_messages_in_flight{rank="1"} 0' in text

    with_server(tmp_path, test)


@given(st.lists(st.integers(0, 10**12), max_size=200))
def test_histogram_counts_what_does_not_exceed_a_limit(latencies: list[int]) -> None:
    histogram = Histogram()
    for latency in latencies:
        histogram.add(latency)
    *buckets, total, count = histogram.lines("x", 'model="a"')
    found = [re.fullmatch(r'x_bucket\{model="a",le="(.+)"\} (\d+)', line) for line in buckets]
    limits = np.array([float(match[1]) for match in found if match])
    assert len(limits) == len(LIMITS) + 1 and (np.diff(limits) > 0).all() and limits[-1] == np.inf
    expected = [sum(t <= limit for t in latencies) for limit in (*LIMITS, np.inf)]
    assert [int(match[2]) for match in found if match] == expected
    assert count == f'x_count{{model="a"}} {len(latencies)}'
    assert float(total.split()[1]) == pytest.approx(sum(latencies) * 1e-9, abs=1e-8)
