"""Suggests batch, ranks, epochs, optimizer and learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpidl.config.suggest.facts import Block, Facts, Setting, power_below
from mpidl.errors import ConfigError

STEPS_A_PASS = 20  # at least: small data sets get small batches
SAMPLES_A_RANK = 8  # of a step: with fewer, ranks wait for each other more than they compute
NUMBERS = 1 << 24  # of the inputs of a step; activations take many times that
LONGEST, SHORTEST = 100, 3  # epochs


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        batch: Largest global batch worth its time.
        steps: Steps after which it has usually learned most.
        optimizer: Its name.
        rate: Learning rate.
        clip: Largest norm of all gradients; 0: no limit.
    """

    batch: int
    steps: int
    optimizer: str
    rate: float
    clip: float = 0.0


RECIPES = {
    "mlp": Recipe(128, 2_000, "adamw", 2e-3),
    "cnn": Recipe(128, 4_000, "adamw", 2e-3),
    "resnet": Recipe(128, 8_000, "sgd", 0.1),
    "lstm": Recipe(64, 2_000, "adamw", 3e-3, 1.0),
    "unet": Recipe(16, 2_000, "adamw", 1e-3),
    "fno": Recipe(32, 3_000, "adamw", 2e-3),
    "gpt": Recipe(32, 3_000, "adamw", 1e-3, 1.0),
}


@dataclass(frozen=True)
class Division:
    """How a step is divided.

    Attributes:
        batch: Samples of a step over all ranks, a power of two.
        micro_batches: Its parts, a power of two.
        ranks: Processes.
    """

    batch: int
    micro_batches: int
    ranks: int


def divide(samples: int, elements: int, largest: int, cores: int, ranks: int | None) -> Division:
    """Choose global batch, micro-batches and ranks.

    Args:
        samples: Of the training data.
        elements: Numbers in an input.
        largest: The largest batch.
        cores: Of this machine.
        ranks: As the user wants; None: as many as there are cores and work.

    Raises:
        ConfigError: There are fewer samples than ranks.
    """
    most = power_below(samples)
    bound = max(SAMPLES_A_RANK, power_below(NUMBERS / max(elements, 1)))
    batch = min(most, max(SAMPLES_A_RANK, min(largest, bound, power_below(samples / STEPS_A_PASS))))
    if ranks is None:
        ranks = min(power_below(cores), max(1, batch // SAMPLES_A_RANK))
    elif power_below(2 * ranks - 1) > most:
        raise ConfigError(
            f"{ranks} ranks for {samples} training sample(s): some would have none in a step",
            where="--ranks",
            remedy=f"choose at most {most}",
        )
    parts = power_below(2 * ranks - 1)  # the next power of two
    batch = max(batch, parts)
    return Division(batch, min(batch, max(4, parts)), ranks)


def choose_epochs(samples: int, batch: int, steps: int) -> int:
    """Epochs that come to about `steps` steps."""
    return min(LONGEST, max(SHORTEST, math.ceil(steps / math.ceil(samples / batch))))


def suggest_training(facts: Facts, model: str, name: str) -> tuple[Block, Division]:
    """The section [train], and how a step is divided.

    Args:
        facts: Of the data.
        model: Name of the model.
        name: Of the run.
    """
    recipe = RECIPES[model]
    plan = divide(facts.samples, facts.elements, recipe.batch, facts.cores, facts.ranks)
    epochs = choose_epochs(facts.samples, plan.batch, recipe.steps)
    steps = math.ceil(facts.samples / plan.batch)
    if plan.ranks & (plan.ranks - 1):
        bits = f"{plan.ranks} ranks: equal to rounding; powers of two give the same bits"
    else:
        bits = f"1 to {plan.micro_batches} ranks, as powers of two, give the same bits"
    block = Block(
        "train",
        (
            Setting("epochs", epochs, f"{epochs * steps:,} steps, {steps:,} in each epoch"),
            Setting("global_batch", plan.batch, _why_batch(facts, plan.batch, steps)),
            Setting("micro_batches", plan.micro_batches, bits),
            Setting("output", f"runs/{name}", "checkpoints, metrics and curves go there"),
        ),
    )
    return block, plan


def _why_batch(facts: Facts, batch: int, steps: int) -> str:
    if facts.elements * 2 * batch > NUMBERS and batch > SAMPLES_A_RANK:
        return f"samples of {facts.elements:,} numbers: the memory of a step stays bounded"
    if steps < 2 * STEPS_A_PASS:
        return f"{facts.samples:,} samples: small enough for {steps} steps in each epoch"
    return "larger batches would take fewer and not much better steps"


def suggest_optimizer(facts: Facts, model: str, plan: Division, epochs: int) -> Block:
    """The section [optim].

    Args:
        facts: Of the data.
        model: Name of the model.
        plan: How a step is divided.
        epochs: Of the run.
    """
    recipe = RECIPES[model]
    sgd = recipe.optimizer == "sgd"
    settings = [
        Setting(
            "name",
            recipe.optimizer,
            "the best known for residual nets" if sgd else "works well without much tuning",
        ),
        Setting("lr", recipe.rate, f"a usual start for {model}; try a third and three times that"),
        Setting(
            "base_batch", plan.batch, "lr is for this batch: with another global_batch it scales"
        ),
        Setting("scaling", "linear" if sgd else "sqrt", f"the usual rule for {recipe.optimizer}"),
        _weight_decay(facts.samples, model),
        Setting("schedule", "cosine", "down to zero at the last step: no milestones to choose"),
        Setting("warmup_epochs", min(0.5, epochs / 20), "the first steps are noisy: small ones"),
    ]
    settings += [Setting("nesterov", True, "converges a little faster")] if sgd else []
    if recipe.clip:
        settings.append(Setting("clip_norm", recipe.clip, f"{model}: rare large gradients"))
    return Block("optim", tuple(settings))


def _weight_decay(samples: int, model: str) -> Setting:
    usual = {"resnet": 5e-4, "gpt": 0.1}
    if model in usual:
        return Setting("weight_decay", usual[model], f"usual for {model}: regularization")
    value = 0.1 if samples < 1_000 else 0.03 if samples < 20_000 else 0.01
    amount = "few samples want more" if samples < 20_000 else "many samples need little"
    return Setting("weight_decay", value, f"{samples:,} samples: {amount} regularization")
