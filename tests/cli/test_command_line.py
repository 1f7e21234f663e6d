"""The command line itself, and `mpidl plan`, which needs no data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpidl.cli import main as command_line
from mpidl.cli.main import main


@pytest.mark.parametrize(
    ("word", "meant"),
    [("trian", "train"), ("evalute", "evaluate"), ("shrad", "shard"), ("plna", "plan")],
)
def test_a_misspelt_command(word: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([word])
    assert (
        caught.value.code == 2
        and f"invalid choice: '{word}': did you mean '{meant}'?" in capsys.readouterr().err
    )


def test_a_command_that_is_near_to_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["xyzzy"])
    err = capsys.readouterr().err
    assert "invalid choice" in err and "did you mean" not in err and "train" in err


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), MemoryError(), OSError(5, "Input/output error")],
)
def test_errors_of_the_machine_have_no_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: Any) -> Any:
        raise error

    module = SimpleNamespace(
        NAME="doctor", HELP="", __doc__="", add_arguments=lambda parser: None, run=run
    )
    monkeypatch.setattr(command_line, "COMMANDS", (module,))
    assert main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert (
        err.count("mpidl: error") == 1
        and "what to do:" in err
        and "Traceback" not in err
        and "running mpidl doctor" in err
    )


def plan(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[dict[str, Any], str]:
    assert main(["plan", "--ranks", "8", "--json", *args]) == 0
    out, err = capsys.readouterr()
    return json.loads(out.splitlines()[-1]), err


def test_plan_says_that_it_assumes_one_rank_a_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, err = plan(capsys)
    assert len(found["notes"]) == 1 and "one is assumed" in found["notes"][0] and "note:" in err
    assert main(["plan", "--ranks", "8"]) == 0 and "--ranks-per-node" in capsys.readouterr().err
    (tmp_path / "m.json").write_text('{"latency_us": 3}')
    assert plan(capsys, "--machine", str(tmp_path / "m.json"))[0]["notes"] == found["notes"], (
        "the machine does not say either"
    )
    (tmp_path / "m.json").write_text('{"ranks_per_node": 1}')
    for told in (["--ranks-per-node", "1"], ["--machine", str(tmp_path / "m.json")]):
        found, err = plan(capsys, *told)
        assert found["notes"] == [] and "note" not in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--plot", "x.xyz"], ["'.xyz'", ".png", ".svg"]),
        (["--plot", "x"], ["''", ".png"]),
        (["--plot", "none/x.png"], ["folder does not exist"]),
        (["--ranks", "2..99999999999"], ["--ranks", "at most 1,048,576"]),
        (["--compute-ms", "nan"], ["--compute-ms", "positive"]),
        (["--gradient-mb", "inf"], ["--gradient-mb", "positive"]),
        (["--latency-us", "nan"], ["latency_us"]),
    ],
)
def test_what_plan_refuses(
    args: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *args]) == 1
    err = capsys.readouterr().err
    assert all(word in err for word in (*words, "mpidl: error", "what to do:")), err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"ranks_per_node": 1.5}', '{"latency_us": "x"}', '{"x": 1}', "{", "\xff"]
)
def test_machines_that_are_none(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.json").write_bytes(text.encode("latin-1"))
    assert main(["plan", "--machine", str(tmp_path / "m.json")]) == 1
    err = capsys.readouterr().err
    assert "what to do:" in err and "Traceback" not in err


def test_a_plot_is_complete_or_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "a.PDF", "a.svg"):
        assert main(["plan", "--ranks", "2..8", "--plot", str(tmp_path / name)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PDF", "a.png", "a.svg"]
    assert (tmp_path / "a.PDF").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    "args",
    [["--classes", "0"], ["--batch", "-1"], ["--input", "99999999,99999999,3"], ["--input", "0"]],
)
def test_what_summary_refuses(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "mlp", "--input", "28", *args]) == 1
    err = capsys.readouterr().err
    assert args[0] in err and "what to do:" in err
