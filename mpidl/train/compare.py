"""Trains the same model on the same data with several strategies, one after another in one job, and compares them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpidl.comm.context import Context
from mpidl.config import Config, load_on_root
from mpidl.observe.metrics import read_metrics
from mpidl.sync import STRATEGIES, mean_and_largest
from mpidl.train.trainer import Trainer


@dataclass(frozen=True)
class Spec:
    """A strategy with options, as written on the command line: "gossip" or "gossip:graph=ring"."""

    text: str
    strategy: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """One run. speeds: samples a second of each rank while it worked; kept: of the fastest speed of the ranks that were not
    slowed, the share they kept when one was (None: not measured); report: the strategy's own figures.
    """

    name: str
    loss: float
    accuracy: float
    evaluated_on: str
    seconds: float
    samples: int
    speeds: list[float]
    kept: float | None
    slowest_kept: float | None
    report: dict[str, Any]
    records: list[dict[str, Any]]


def read_spec(text: str) -> Spec:
    """Raises ConfigError for an unknown strategy."""
    name, _, options = text.partition(":")
    STRATEGIES.check(name, "--strategies")
    pairs = [pair for pair in options.split(",") if pair]
    own = [pair if "." in pair.partition("=")[0] else f"sync.{pair}" for pair in pairs]
    return Spec(text, name, (f"sync.strategy={name}", *own))


def split_specs(text: str) -> list[Spec]:
    """Specs separated by spaces or semicolons; by commas where none has options."""
    parts = (
        text.replace(";", " ").split()
        if ":" in text
        else text.replace(",", " ").replace(";", " ").split()
    )
    return [read_spec(part) for part in parts]


def compare(
    path: str,
    overrides: Sequence[str],
    specs: Sequence[Spec],
    out: Path,
    context: Context,
    *,
    slow: tuple[int, float] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Outcome]:
    """One outcome for each strategy. slow: (rank, factor): repeat each run with that rank so many times slower. Collective."""
    configs = [
        load_on_root(
            context,
            path,
            [*overrides, *spec.overrides, f"train.output={out}/{index}-{spec.strategy}"],
        )
        for index, spec in enumerate(specs)
    ]
    outcomes = []
    for spec, config in zip(specs, configs, strict=True):
        outcome = _run(spec, config, context, None)
        if slow is not None:
            slowed = _run(spec, config, context, slow)
            outcome = _kept(outcome, slowed, slow[0])
        outcomes.append(outcome)
        say(describe(outcome))
    return outcomes


def _run(spec: Spec, config: Config, context: Context, slow: tuple[int, float] | None) -> Outcome:
    trainer = Trainer(config, context)
    trainer.prepare(overwrite=True)
    if slow is not None and context.rank == slow[0]:
        trainer.gradients.slowdown = slow[1]
    result = trainer.run()
    trainer.close()
    speed = trainer.worked.samples / trainer.worked.seconds if trainer.worked.seconds else 0.0
    records = read_metrics(Path(config.train.output) / "metrics.jsonl") if context.is_root else []
    return Outcome(
        name=spec.text,
        loss=result.loss,
        accuracy=result.accuracy,
        evaluated_on=result.evaluated_on,
        seconds=result.seconds,
        samples=int(sum(context.allgather_object(trainer.worked.samples))),
        speeds=context.allgather_object(speed),
        kept=None,
        slowest_kept=None,
        report=trainer.strategy.report(),
        records=records,
    )


def _kept(plain: Outcome, slowed: Outcome, rank: int) -> Outcome:
    """The plain outcome with the share of speed that the other ranks kept: on average, and the worst of them."""
    shares = [
        after / before
        for index, (before, after) in enumerate(zip(plain.speeds, slowed.speeds, strict=True))
        if index != rank and before > 0
    ]
    return (
        replace(plain, kept=sum(shares) / len(shares), slowest_kept=min(shares))
        if shares
        else plain
    )


def describe(outcome: Outcome) -> str:
    """A line for people."""
    kept = (
        f", others keep {100 * outcome.kept:.0f} % beside a slow rank"
        if outcome.kept is not None
        else ""
    )
    megabytes = outcome.report.get("sent_bytes", 0) / 1e6
    return (
        f"{outcome.name}: {outcome.evaluated_on} accuracy {100 * outcome.accuracy:.2f} %, loss {outcome.loss:.4f}, "
        f"{outcome.seconds:.1f} s, "
        f"{outcome.samples:,} samples, {megabytes:.1f} MB sent by a rank{kept}"
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table."""
    slowed = any(outcome.kept is not None for outcome in outcomes)
    on = " and ".join(sorted({one.evaluated_on for one in outcomes}))
    head = [
        "strategy",
        f"{on} accuracy",
        "loss",
        "seconds",
        "samples/s",
        "MB sent by a rank",
        "staleness mean (largest)",
    ]
    lines = [head + (["others keep beside a slow rank"] if slowed else [])]
    for one in outcomes:
        late = mean_and_largest(one.report)
        mean = f"{late[0]:.2f} ({late[1]})" if late else "-"
        cells = [one.name, f"{100 * one.accuracy:.2f} %", f"{one.loss:.4f}", f"{one.seconds:.1f}"]
        cells += [
            f"{one.samples / one.seconds:,.0f}",
            f"{one.report.get('sent_bytes', 0) / 1e6:.1f}",
            mean,
        ]
        lines.append(
            cells + ([f"{100 * one.kept:.0f} %" if one.kept is not None else "-"] if slowed else [])
        )
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
