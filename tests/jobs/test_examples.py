"""The examples learn what they are about, in a short run on two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.helpers import finish, start

EXAMPLES = Path(__file__).parent.parent.parent / "scripts" / "examples"
TEXT = Path("/usr/share/common-licenses/GPL-3")


@pytest.mark.skipif(not TEXT.exists(), reason="no Debian: no text at hand")
def test_gpt_learns_a_text() -> None:
    job = finish(start(2, "python", str(EXAMPLES / "gpt_text.py"), "--steps", "300", "--json"))
    assert job.status == 0, job.err
    assert job.result["held_out_nats"] < 0.8 * job.result["letter_frequencies_nats"]
    assert len(job.result["sample"]) == 120


def test_fno_learns_burgers_equation(tmp_path: Path) -> None:
    plot = tmp_path / "error.png"
    sizes = ("--epochs", "10", "--samples", "192", "--plot", str(plot), "--json")
    job = finish(start(2, "python", str(EXAMPLES / "fno_burgers.py"), *sizes))
    assert job.status == 0, job.err
    assert job.result["relative_error"] < 0.2
    assert plot.stat().st_size > 10_000
