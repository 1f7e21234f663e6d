"""`mpidl plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpidl.cli.main import main
from mpidl.errors import ConfigError
from mpidl.performance.machine import Machine


def test_plan_shows_its_calculation(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", "--ranks", "2..1024", "--plot", str(tmp_path / "plan.png")]) == 0
    text = capsys.readouterr().out
    assert "calculation for 1024 ranks" in text and "rabenseifner" in text and " 1024" in text
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    assert (
        main(["plan", "--ranks", "64", "--json", "--bandwidth-gbit", "10", "--ranks-per-node", "4"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["bandwidth_gb_s"] == 1.25 and found["steps"][0]["nodes"] == 16


@pytest.mark.parametrize(
    "arguments",
    [["--ranks", "4..2"], ["--ranks", "x"], ["--compute-ms", "0"], ["--bandwidth-gbit", "-1"]],
)
def test_plan_refuses_nonsense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 1
    assert "what to do" in capsys.readouterr().err or arguments[0] == "--compute-ms"


def test_a_machine_file_with_an_unknown_key_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.json").write_text('{"latency": 3}')
    assert main(["plan", "--machine", str(tmp_path / "m.json")]) == 1
    assert "unknown key 'latency'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="latency_us"):
        Machine(latency_us=0)
