"""Predictions: against formulas, against clocks, and at scale."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mpidl.cli.main import main
from mpidl.collectives.algorithms.hierarchical import hierarchical
from mpidl.collectives.algorithms.rabenseifner import rabenseifner
from mpidl.collectives.algorithms.recursive_doubling import recursive_doubling
from mpidl.collectives.algorithms.ring import ring
from mpidl.collectives.algorithms.tree import tree
from mpidl.collectives.engine.select import choose
from mpidl.errors import ConfigError
from mpidl.performance.cost import Machine, follow, lockstep
from mpidl.performance.measure import fit
from mpidl.performance.step import plan_step

MACHINE = Machine(latency_us=5, bandwidth_gb_s=10, reduce_gb_s=1e9)


@pytest.mark.parametrize("size", [2, 3, 8, 64])
def test_the_ring_costs_what_the_book_says(size: int) -> None:
    length = size * 4096
    wanted = 2 * (size - 1) * (5e-6 + 4 * 4096 / 10e9)
    assert lockstep(ring, length, size, MACHINE) == pytest.approx(wanted)
    assert follow(ring, length, size, MACHINE) == pytest.approx(wanted)


@pytest.mark.parametrize("size", [2, 4, 16, 64])
def test_rabenseifner_and_doubling_cost_what_the_book_says(size: int) -> None:
    length, rounds = size * 1024, math.log2(size)
    assert lockstep(rabenseifner, length, size, MACHINE) == pytest.approx(
        2 * rounds * 5e-6 + 2 * (size - 1) / size * 4 * length / 10e9
    )
    assert follow(recursive_doubling, length, size, MACHINE) == pytest.approx(
        rounds * (5e-6 + 4 * length / 10e9)
    )


@pytest.mark.parametrize("algorithm", [ring, rabenseifner, recursive_doubling, tree])
@pytest.mark.parametrize("size", [2, 5, 8, 32])
@pytest.mark.parametrize("length", [100, 1_000_000])
def test_clocks_never_run_later_than_lockstep(algorithm: object, size: int, length: int) -> None:
    machine = Machine(ranks_per_node=4)
    step, clock = (
        lockstep(algorithm, length, size, machine),
        follow(algorithm, length, size, machine),
    )  # type: ignore[arg-type]
    assert clock <= step * 1.01 and step <= 3 * clock


def test_messages_that_leave_a_node_together_share_its_link() -> None:
    alone, crowded = Machine(ranks_per_node=1), Machine(ranks_per_node=8)
    assert (
        lockstep(recursive_doubling, 1 << 20, 64, crowded)
        > 3 * lockstep(recursive_doubling, 1 << 20, 64, alone) / 2
    )
    two_levels = lockstep(hierarchical(crowded.nodes(64)), 1 << 20, 64, crowded)
    assert two_levels < lockstep(recursive_doubling, 1 << 20, 64, crowded)


def test_resnet_50_scales_to_1024_ranks() -> None:
    machine = Machine(latency_us=5, bandwidth_gb_s=12.5)
    step = plan_step(machine, 1024, gradient_bytes=102_000_000, compute=0.25, bucket_bytes=25 << 20)
    assert step.efficiency >= 0.9
    assert (
        step.seconds == pytest.approx(0.25 + step.exposed)
        and step.exposed >= step.bucket_seconds * 0.999
    )
    apart = plan_step(
        machine,
        1024,
        gradient_bytes=102_000_000,
        compute=0.25,
        bucket_bytes=25 << 20,
        overlap=False,
    )
    assert (
        apart.exposed == pytest.approx(apart.communication) and apart.efficiency < step.efficiency
    )


def test_a_slow_network_shows() -> None:
    slow = plan_step(
        Machine(bandwidth_gb_s=0.125),
        64,
        gradient_bytes=102_000_000,
        compute=0.25,
        bucket_bytes=25 << 20,
    )
    assert slow.efficiency < 0.2


def test_plan_shows_its_working(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", "--ranks", "2..1024", "--plot", str(tmp_path / "plan.png")]) == 0
    text = capsys.readouterr().out
    assert "working, 1024 ranks" in text and "rabenseifner" in text and " 1024" in text
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


def test_the_fit_finds_latency_and_rate() -> None:
    sizes = (64, 1 << 20, 1 << 22)
    latency, rate = fit(sizes, [1e-5 + size / 2e9 for size in sizes])
    assert latency == pytest.approx(1e-5, rel=0.01) and rate == pytest.approx(2e9)


def test_the_choice() -> None:
    one, four, flat = (0,) * 4, (0, 0, 1, 1), (0, 1, 2, 3)
    assert choose(4, one) == "hierarchical"
    assert choose(4, one, shared=False) == choose(4, flat) == "native"
    assert (
        choose(1 << 22, four) == "hierarchical"
        and choose(1 << 22, flat) == "ring"
        and choose(1 << 18, flat) == "rabenseifner"
    )
    assert choose(1 << 22, flat, half=True) == "direct"
    table = {"4x4": [(0, "doubling"), (1000, "tree")]}
    assert choose(4, flat, table=table) == "doubling" and choose(5000, flat, table=table) == "tree"
    assert choose(4, four, table=table) == "native"
