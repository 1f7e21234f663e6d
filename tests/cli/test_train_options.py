"""The command line of `mpidl train`."""

from __future__ import annotations

import pytest

from mpidl.cli.main import make_parser


@pytest.mark.parametrize("name", ["../other", "a/b", "", ".", "..", "-x", "a b", "x" * 101])
def test_a_subfolder_stays_within_the_output(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args(["train", "run.toml", f"--subfolder={name}"])
    assert caught.value.code == 2 and "is not a name of letters" in capsys.readouterr().err


def test_a_subfolder_of_a_job_array() -> None:
    assert (
        make_parser().parse_args(["train", "run.toml", "--subfolder", "task-12"]).subfolder
        == "task-12"
    )
