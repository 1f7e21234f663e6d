"""Texts from the command line: the same for any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.helpers import mpidl

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
