"""A running server under load, and its page in a browser."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.observe.plot import pyplot
from tests.jobs.browser import CHROMIUM, Browser
from tests.jobs.helpers import environment
from tests.jobs.test_serve import IMAGES, Serving, expected, folder, server  # noqa: F401

needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["mpidl", "bench", "serve", *args],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=90,
    )


def answered(server: Serving, model: str) -> int:
    with urllib.request.urlopen(f"http://{server.http}/v2/models/{model}/stats") as answer:
        found: list[dict[str, Any]] = json.load(answer)["model_stats"]
    return sum(one["inference_stats"]["success"]["count"] for one in found)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_both_loops(server: Serving, tmp_path: Path, protocol: str) -> None:
    before = answered(server, "cnn")
    address = server.grpc if protocol == "grpc" else server.http
    load = ("--clients", "1,4", "--rate", "60", "--batch", "2", "--seconds", "0.5")
    plot = ("--plot", str(tmp_path / "load.png"))
    chosen = (address, "--protocol", protocol, "--model", "cnn")
    job = bench(*chosen, *load, "--warmup", "0", *plot, "--json")
    assert job.returncode == 0, job.stderr
    *closed, opened = json.loads(job.stdout)["results"]
    assert [row["clients"] for row in closed] == [1, 4] and opened["rate"] == 60
    assert answered(server, "cnn") - before == sum(row["requests"] for row in (*closed, opened))
    for row in (*closed, opened):
        assert row["errors"] == {} and row["requests"] > 5
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p95_ms"] <= row["p99_ms"]
        rate = 2 * row["requests"] / row["seconds"]
        assert row["samples_per_second"] == pytest.approx(rate, rel=0.01)
    assert pyplot().imread(tmp_path / "load.png").std() > 0.05


def test_table_and_refusals(server: Serving) -> None:
    job = bench(server.http, "--model", "single", "--clients", "2", "--seconds", "0.2")
    assert job.returncode == 0 and "2 client(s)" in job.stdout and "p99" in job.stdout
    # more samples than a batch of this model has: every request is refused
    job = bench(server.http, "--model", "single", "--batch", "3", "--rate", "20", "--json")
    (row,) = json.loads(job.stdout)["results"]
    assert row["errors"] == {"400": row["requests"]} and row["p50_ms"] is None
    assert "choose one with --model" in bench(server.http).stderr
    for address, protocol in ((server.http, "rest"), (server.grpc, "grpc")):
        job = bench(address, "--protocol", protocol, "--model", "nobody")
        assert job.returncode == 1 and "unknown model: 'nobody'" in job.stderr


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@needs_chromium
def test_page_shows_models_and_answers_a_sample(
    server: Serving,
    expected: np.ndarray,
    browser: Browser,
) -> None:
    browser.open(f"http://{server.http}/ui")
    browser.wait("document.querySelectorAll('#models tr').length === 3")
    rows = browser.run("[...document.querySelectorAll('#models tr')].map(r => r.innerText)")
    assert [row.split()[:3] for row in rows] == [
        ["cnn", "1", "READY"], ["single", "3", "READY"], ["single", "7", "READY"],
    ]  # fmt: skip
    assert browser.wait("document.getElementById('state').textContent") == "ready"
    assert browser.run("document.getElementById('ranks').innerText") == "rank 1: 0"
    browser.wait("!!document.querySelector('#inputs textarea')")
    before = answered(server, "cnn")
    _send(browser, IMAGES[1])
    found = browser.run(
        "[...document.querySelectorAll('.bar > :last-child')].map(b => b.innerText)"
    )
    shown = sorted(float(text[:-2]) for text in found if text.endswith(" %"))
    np.testing.assert_allclose(shown, sorted(100 * expected[1]), atol=0.006)
    label = browser.run("document.querySelector('#outputs pre').innerText")
    assert int(label) == expected[1].argmax()
    for button in (0, 1):  # zeros, random numbers
        browser.run("document.getElementById('outputs').replaceChildren()")
        browser.run(f"document.querySelectorAll('#inputs button')[{button}].click()")
        browser.run("document.getElementById('send').click()")
        browser.wait("document.querySelectorAll('#outputs .bar').length === 4")
    cell = "document.querySelector('#models td:nth-child(10)')"  # answered; 1,234
    browser.wait(f"Number({cell}.innerText.replaceAll(',', '')) >= {before + 3}")
    browser.wait("document.querySelectorAll('#batches .bar').length >= 1")
    assert browser.problems == []
    _shoot(browser, "light")


@needs_chromium
def test_page_is_light_or_dark_as_the_browser(server: Serving, browser: Browser) -> None:
    browser.open(f"http://{server.http}/ui/")
    browser.wait("!!document.querySelector('#inputs textarea')")
    for scheme, light in (("dark", False), ("light", True)):
        browser.prefer(scheme)
        color = browser.run("getComputedStyle(document.body).backgroundColor")
        levels = [int(level) for level in color[4:-1].split(",")]
        assert (min(levels) > 200) if light else (max(levels) < 60)
        _shoot(browser, scheme)


@needs_chromium
def test_page_says_what_is_wrong(server: Serving, browser: Browser) -> None:
    browser.open(f"http://{server.http}/ui/")
    browser.wait("!!document.querySelector('#inputs textarea')")
    for text, message in (("1, 2", "a sample has 100"), ("<b>x</b>", "no numbers")):
        browser.run(f"document.querySelector('#inputs textarea').value = {json.dumps(text)}")
        browser.run("document.getElementById('send').click()")
        browser.wait(f"document.getElementById('took').innerText.includes({json.dumps(message)})")
    _send(browser, np.full((17, 100), 1), "took", "bad")  # 17 samples; a batch has 16
    assert "16" in browser.run("document.getElementById('took').innerText")


@needs_chromium
def test_percentiles_of_the_page(server: Serving, browser: Browser) -> None:
    browser.open(f"http://{server.http}/ui/")
    browser.wait("!!document.getElementById('models')")

    def call(name: str, *values: Any) -> Any:
        given = ", ".join(map(json.dumps, values)).replace("99999", "Infinity")
        return browser.run(f"import('/ui/metrics.js').then(m => m.{name}({given}))")

    limits = [1, 2, 4, 8]
    assert call("percentile", limits, [0, 10, 20, 20], 0.5) == 2
    assert call("percentile", limits, [0, 10, 20, 20], 0.75) == 3
    assert call("percentile", limits, [0, 10, 20, 20], 0.25) == 1.5
    assert call("percentile", limits, [0, 0, 0, 0], 0.5) is None
    assert call("percentile", [1, 99999], [1, 10], 0.99) == 1  # it is not known better
    assert call("added", [5, 7], [3, 7]) == [2, 0]
    assert call("added", [5, 7], [6, 7]) == [5, 7]
    assert call("bytes", 1536) == "1.5 KiB" and call("bytes", 0) == "0 bytes"


def _shoot(browser: Browser, name: str) -> None:
    """For a person to look at."""
    if folder := os.environ.get("MPIDL_SCREENSHOTS"):
        browser.shoot(Path(folder) / f"page-{name}.png")


def _send(browser: Browser, sample: np.ndarray, element: str = "outputs", kind: str = "") -> None:
    """Send a sample by the form, and wait for the answer."""
    text = json.dumps(json.dumps(sample.tolist()))
    browser.run(f"document.querySelector('#inputs textarea').value = {text}")
    browser.run("document.getElementById('send').click()")
    found = f"document.getElementById({element!r})"
    browser.wait(f"{found}.childNodes.length && {found}.className === {kind!r}")
