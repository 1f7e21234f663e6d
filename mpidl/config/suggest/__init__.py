"""Suggests a configuration for a data set, with the reason for each setting.

The rules are pure functions of `Facts`; `mpidl init` collects those and writes the result.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpidl.config.suggest.data import (
    suggest_augmentation,
    suggest_data,
    suggest_loss,
    suggest_task,
)
from mpidl.config.suggest.facts import Block, Facts
from mpidl.config.suggest.model import suggest_model
from mpidl.config.suggest.toml import write_toml
from mpidl.config.suggest.training import suggest_optimizer, suggest_training


@dataclass(frozen=True)
class Suggestion:
    """A configuration.

    Attributes:
        blocks: Its sections.
        ranks: Number of ranks to start it with.
        model: Name of its model.
    """

    blocks: tuple[Block, ...]
    ranks: int
    model: str


def suggest(facts: Facts, name: str) -> Suggestion:
    """All sections for a data set.

    Args:
        facts: What is known of it.
        name: Of the run.

    Raises:
        ConfigError: There are fewer samples than ranks.
    """
    model = suggest_model(facts)
    kind = model.value("name")
    train, plan = suggest_training(facts, kind, name)
    optim = suggest_optimizer(facts, kind, plan, train.value("epochs"))
    blocks = (
        suggest_data(facts),
        suggest_task(facts),
        model,
        suggest_loss(facts),
        optim,
        train,
        suggest_augmentation(facts),
    )
    return Suggestion(tuple(block for block in blocks if block), plan.ranks, kind)


__all__ = ["Block", "Facts", "Suggestion", "suggest", "write_toml"]
