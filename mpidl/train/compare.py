"""Trains a model with several strategies, one after another in one job, and compares them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpidl.comm.context import Context
from mpidl.config import Config, load_on_root
from mpidl.observe.metrics import read_metrics
from mpidl.sync import STRATEGIES, StepScalars, mean_and_largest
from mpidl.task import Evaluation, format_metric
from mpidl.train.events import Observer
from mpidl.train.observers import METRICS
from mpidl.train.trainer import Trainer, usual_observers


@dataclass(frozen=True)
class Spec:
    """A strategy with options, as written on the command line.

    Attributes:
        text: "gossip" or "gossip:graph=ring".
        strategy: Its name.
        overrides: The settings that choose it.
    """

    text: str
    strategy: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        name: The text of its `Spec`.
        quality: As `Result.quality`.
        metric: What the task chooses the best by.
        evaluated_on: As `Result.evaluated_on`.
        seconds: Time of the loop.
        samples: That the ranks have trained on.
        speeds: Samples a second of each rank while it worked.
        kept: Mean share of its speed that a rank which was not slowed down kept while another was;
            None: not measured.
        slowest_kept: The smallest of these shares.
        report: The strategy's own figures.
        records: The metrics.
    """

    name: str
    quality: Evaluation
    metric: str
    evaluated_on: str
    seconds: float
    samples: int
    speeds: list[float]
    kept: float | None
    slowest_kept: float | None
    report: dict[str, Any]
    records: list[dict[str, Any]]

    def record(self) -> dict[str, Any]:
        """Plain values, for files and --json."""
        own = {name: value for name, value in vars(self).items() if name != "quality"}
        return {"name": self.name} | self.quality.record() | own


class SpeedMeter(Observer):
    """Measures this rank while it works: from the start of each epoch to its last step in it.

    Attributes:
        samples: That it has trained on.
        seconds: That it has taken.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.seconds = 0.0
        self._begun = 0.0

    def epoch_started(self) -> None:
        """Start the clock."""
        self._begun = time.monotonic()

    def pass_finished(self, own: StepScalars) -> None:
        """Count samples."""
        self.samples += int(own.count)

    def epoch_finished(self) -> None:
        """Stop the clock."""
        self.seconds += time.monotonic() - self._begun

    @property
    def speed(self) -> float:
        """Samples a second."""
        return self.samples / self.seconds if self.seconds else 0.0


class SlowRank(Observer):
    """Makes the passes of this rank take `factor` times as long, for experiments."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self._begun = 0.0

    def pass_started(self) -> None:
        """Start the clock."""
        self._begun = time.monotonic()

    def pass_finished(self, own: StepScalars) -> None:
        """Sleep for the rest."""
        time.sleep((self.factor - 1) * (time.monotonic() - self._begun))


def read_spec(text: str) -> Spec:
    """Read a strategy with options.

    Raises:
        ConfigError: There is no such strategy.
    """
    name, _, options = text.partition(":")
    STRATEGIES.check(name, "--strategies")
    pairs = [pair for pair in options.split(",") if pair]
    own = [pair if "." in pair.partition("=")[0] else f"sync.{pair}" for pair in pairs]
    return Spec(text, name, (f"sync.strategy={name}", *own))


def split_specs(text: str) -> list[Spec]:
    """Read specs separated by spaces or semicolons; by commas where none has options."""
    words = text.replace(";", " ")
    if ":" not in text:
        words = words.replace(",", " ")
    return [read_spec(word) for word in words.split()]


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
    """Train once with each strategy. Collective.

    Args:
        path: Of the configuration.
        overrides: Settings of all runs.
        specs: The strategies.
        out: Folder for the runs.
        context: The ranks.
        slow: (rank, factor): repeat each run with that rank so many times slower.
        say: Told of each outcome.

    Returns:
        One outcome for each strategy.
    """
    configs = []
    for index, spec in enumerate(specs):
        sets = [*overrides, *spec.overrides, f"train.output={out}/{index}-{spec.strategy}"]
        config, context = load_on_root(context, path, sets)
        configs.append(config)
    outcomes = []
    for spec, config in zip(specs, configs, strict=True):
        outcome = _run(spec, config, context, 1.0)
        if slow is not None:
            factor = slow[1] if context.rank == slow[0] else 1.0
            outcome = _add_kept(outcome, _run(spec, config, context, factor), slow[0])
        outcomes.append(outcome)
        say(describe(outcome))
    return outcomes


def _run(spec: Spec, config: Config, context: Context, factor: float) -> Outcome:
    """Train once, this rank `factor` times slower. Collective."""
    meter = SpeedMeter()
    observers = [*usual_observers(config, context, lambda text: None), meter]
    if factor > 1:
        observers.append(SlowRank(factor))
    trainer = Trainer(config, context, observers=observers)
    trainer.prepare(overwrite=True)
    result = trainer.run()
    trainer.close()
    records = read_metrics(Path(config.train.output) / METRICS) if context.is_root else []
    return Outcome(
        name=spec.text,
        quality=result.quality,
        metric=trainer.parts.task.best,
        evaluated_on=result.evaluated_on,
        seconds=result.seconds,
        samples=sum(context.allgather_object(meter.samples, int)),
        speeds=context.allgather_object(meter.speed, float),
        kept=None,
        slowest_kept=None,
        report=trainer.parts.strategy.report(),
        records=records,
    )


def _add_kept(outcome: Outcome, slowed: Outcome, rank: int) -> Outcome:
    """Add the share of speed that the others kept when `rank` was slowed down."""
    shares = [
        after / before
        for index, (before, after) in enumerate(zip(outcome.speeds, slowed.speeds, strict=True))
        if index != rank and before > 0
    ]
    if not shares:
        return outcome
    return replace(outcome, kept=sum(shares) / len(shares), slowest_kept=min(shares))


def describe(outcome: Outcome) -> str:
    """A line for people."""
    kept = ""
    if outcome.kept is not None:
        kept = f", others keep {100 * outcome.kept:.0f} % of their speed beside a slow rank"
    megabytes = outcome.report.get("sent_bytes", 0) / 1e6
    quality = outcome.quality.describe()
    return (
        f"{outcome.name}: {outcome.evaluated_on} {quality}, {outcome.seconds:.1f} s, "
        f"{outcome.samples:,} samples, {megabytes:.1f} MB sent by a rank{kept}"
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table."""
    slowed = any(outcome.kept is not None for outcome in outcomes)
    on = " and ".join(sorted({one.evaluated_on for one in outcomes}))
    metric = outcomes[0].metric if outcomes else "loss"
    head = [
        "strategy",
        *([] if metric == "loss" else [f"{on} {metric.replace('_', ' ')}"]),
        "loss" if metric != "loss" else f"{on} loss",
        "seconds",
        "samples/s",
        "MB sent by a rank",
        "staleness mean (largest)",
        *(["others keep beside a slow rank"] if slowed else []),
    ]
    rows = [head, ["---"] * len(head), *(_row(one, slowed) for one in outcomes)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(one: Outcome, slowed: bool) -> list[str]:
    late = mean_and_largest(one.report)
    cells = [
        one.name,
        *([] if one.metric == "loss" else [_quality(one)]),
        f"{one.quality.loss:.4f}",
        f"{one.seconds:.1f}",
        f"{one.samples / one.seconds:,.0f}",
        f"{one.report.get('sent_bytes', 0) / 1e6:.1f}",
        f"{late[0]:.2f} ({late[1]})" if late else "-",
    ]
    if slowed:
        cells.append("-" if one.kept is None else f"{100 * one.kept:.0f} %")
    return cells


def _quality(one: Outcome) -> str:
    value = one.quality.metrics.get(one.metric)
    return "-" if value is None else format_metric(one.metric, value)
