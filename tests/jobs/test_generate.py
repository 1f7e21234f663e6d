"""Texts from the command line: the same for any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.jobs.browser import CHROMIUM, Browser
from tests.jobs.helpers import mpidl
from tests.jobs.test_serve import Serving, run_examples

CONFIG = """
[data]
train = "{folder}/data"
[model]
name = "gpt"
width = 32
depth = 1
heads = 2
[optim]
name = "adam"
lr = 0.01
[train]
epochs = 12
global_batch = 16
output = "{folder}/run"
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of a text that repeats itself."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("abcdefgh" * 900 + "\u00e4\u00f6")
    out = ("--window", "25", "--out", str(folder / "data"))
    assert mpidl(2, "shard", str(folder / "text.txt"), *out).status == 0
    (folder / "run.toml").write_text(CONFIG.format(folder=folder))
    job = mpidl(2, "train", str(folder / "run.toml"))
    assert job.status == 0, job.err
    return str(folder / "run")


def test_what_was_learned_is_written(run: str) -> None:
    job = mpidl(1, "generate", run, "--prompt", "cde", "--max-tokens", "15", "--temperature", "0")
    assert job.status == 0, job.err
    assert job.out.strip() == "cdefghabcdefghabcd"
    stopped = ("--stop", "b", "--max-tokens", "15", "--temperature", "0")
    job = mpidl(2, "generate", run, "--prompt", "cde", *stopped)
    assert job.out.strip() == "cdefgha", job.err


def test_ranks_share_the_prompts(run: str, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("abc\n\nfgh\n\u00e4\n")
    options = ("--max-tokens", "12", "--temperature", "3", "--seed", "7", "--texts", "2")
    found = []
    for ranks in (1, 3):
        job = mpidl(
            ranks, "generate", run, "--prompts", str(tmp_path / "prompts"), *options, "--json"
        )
        assert job.status == 0, job.err
        found.append(job.result["texts"])
    assert found[0] == found[1] and len(found[0]) == 6
    assert [each["seed"] for each in found[0]] == list(range(7, 13))
    assert [each["prompt"] for each in found[0]] == ["abc"] * 2 + ["fgh"] * 2 + ["\u00e4"] * 2
    assert len({each["text"] for each in found[0]}) == 6


def test_a_quantized_model_writes_with_a_small_cache(run: str, tmp_path: Path) -> None:
    small, data = str(tmp_path / "small.h5"), str(Path(run).parent / "data")
    job = mpidl(2, "quantize", run, "--out", small, "--data", data, "--json")
    assert job.status == 0, job.err
    texts = job.result["texts"]
    assert set(texts) == {"before", "after", "after, int8 cache"}
    before = texts["before"][0]
    assert all(perplexity < 1.02 * before and rate > 0 for perplexity, rate in texts.values())
    assert before == pytest.approx(job.result["before"]["perplexity"], rel=0.05)  # of some windows
    job = mpidl(1, "generate", small, "--prompt", "cde", "--cache", "int8", "--max-tokens", "15",
                "--temperature", "0", "--json")  # fmt: skip
    assert job.status == 0 and job.result["tokens_per_second"] > 0, job.err
    assert job.result["texts"][0]["text"] == "fghabcdefghabcd"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "x" * 30], "the context of the model"),
        (["--prompt", ""], "0 token"),
        (["--prompt", "a", "--temperature", "-1"], "temperature is -1.0"),
        (["--prompt", "a", "--stop", "abc"], "has 3 tokens"),
        (["--prompt", "a", "--tokenizer", "none.json"], "the tokenizer does not exist"),
        (["--prompts", "none.txt"], "none.txt"),
    ],
)
def test_what_cannot_be_is_refused_once(run: str, options: list[str], words: str) -> None:
    job = mpidl(2, "generate", run, *options)
    assert job.status == 1 and job.err.count("mpidl: error") == 1, job.err
    assert words in job.err


def test_a_classifier_writes_no_texts(run_folder: Path) -> None:
    toml = str(run_folder / "run.toml")
    assert mpidl(2, "train", toml, "--set", "train.max_steps=2").status == 0
    job = mpidl(2, "generate", str(run_folder / "run"), "--prompt", "a")
    assert job.status == 1 and "writes no texts" in job.err


def test_a_server_writes_texts(run: str, tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(f'[models.gpt]\npath = "{run}"\n')
    server = Serving(tmp_path / "models.toml", ranks=3)
    try:
        whole, streamed = run_examples(1, server, {"In the": "cde", '"seed": 1': '"seed": 7'})
        wanted = ("--prompt", "cde", "--max-tokens", "20", "--temperature", "0.8", "--seed", "7")
        assert (
            "cde" + json.loads(whole)["text_output"] == mpidl(1, "generate", run, *wanted).out[:-1]
        )
        events = [json.loads(line[6:]) for line in streamed.splitlines() if line]
        assert events[-1]["done"] and "".join(event["text_output"] for event in events)
        if CHROMIUM:
            _try_a_prompt(server, tmp_path / "profile")
    finally:
        job = server.stop()
    assert job.status == 75, job.err


def _try_a_prompt(server: Serving, profile: Path) -> None:
    """With the form of the page."""
    browser = Browser(profile)
    try:
        browser.open(f"http://{server.http}/ui/")
        browser.wait("!!document.getElementById('prompt')")
        assert browser.run("document.getElementById('what').textContent") == "Try a prompt"
        browser.run("document.getElementById('prompt').value = 'fgh'")
        browser.run("document.querySelector('input[name=temperature]').value = 0")
        browser.run("document.querySelector('input[name=max_tokens]').value = 9")
        browser.run("document.getElementById('send').click()")
        details = browser.wait("document.querySelector('#outputs small')?.textContent")
        assert browser.run("document.querySelector('#outputs pre').textContent") == "fghabcdefgha"
        assert details.startswith("9 tokens, length, seed ")
        browser.run("document.querySelector('input[name=max_tokens]').value = 0")
        browser.run("document.getElementById('try').noValidate = true")
        browser.run("document.getElementById('send').click()")
        browser.wait("document.getElementById('took').className === 'bad'")
        assert "max_tokens" in browser.run("document.getElementById('took').textContent")
        assert [problem for problem in browser.problems if "400" not in problem] == []
    finally:
        browser.close()
