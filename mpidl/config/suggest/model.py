"""Suggests a model and its size, by the shape of the samples and by how many there are."""

from __future__ import annotations

import math

from mpidl.config.suggest.facts import FEWEST, Block, Facts, Setting
from mpidl.errors import ConfigError

LARGE = 65_536  # numbers in a sample: wide dense layers on them would be too large
SMOOTH = 16  # points of an axis, from which Fourier modes describe a field well


def suggest_model(facts: Facts) -> Block:
    """The section [model]."""
    if facts.kind == "tokens":
        return Block("model", _gpt(facts))
    if facts.is_rollout and (facts.kind == "other" or min(facts.shape[:-1], default=9) < FEWEST):
        raise ConfigError(
            f"no model goes from frames {facts.shape} to the next ones",
            where=", ".join(facts.folders),
            remedy=f"frames have one or two axes of space of {FEWEST} points or more, or none",
        )
    if facts.kind == "image":
        settings = _field_model(facts) if facts.has_field_targets else _image_model(facts)
    elif facts.kind == "series":
        settings = _series_model(facts)
    else:
        settings = _mlp(facts)
    return Block("model", settings)


def _mlp(facts: Facts) -> tuple[Setting, ...]:
    sizes = {500: (32,), 5_000: (64, 64), 50_000: (128, 128)}
    hidden = next((size for most, size in sizes.items() if facts.samples < most), (256, 256))
    if facts.elements > LARGE:
        hidden = (32,)
    why = {
        "vector": f"samples are vectors of {facts.elements:,} number(s): dense layers",
        "image": f"images {facts.shape} are too small to convolve: dense layers",
    }.get(facts.kind, f"samples of the shape {facts.shape}: dense layers take any shape")
    if any(field.classes for field in facts.features.values()):
        why = "tokens with a label: dense layers take them as plain numbers, a weak start"
    amount = f"{facts.samples:,} samples: more units would learn them by heart"
    if facts.samples >= 50_000:
        amount = f"{facts.samples:,} samples carry layers of this width"
    return Setting("name", "mlp", why), Setting("hidden", list(hidden), amount)


def _image_model(facts: Facts) -> tuple[Setting, ...]:
    side, n = min(facts.shape[:2]), facts.samples
    if side < 4:
        return _mlp(facts)
    if facts.shape[2] >= 3 and side >= 32 and n >= (20_000 if side <= 96 else 5_000):
        many = n >= 100_000
        return (
            Setting("name", "resnet", f"{n:,} color images {facts.shape}: enough for a deep net"),
            Setting("depth", 18 if many else 10, "deeper nets want more than 100,000 images"),
            Setting("width", 64 if many else 32, "half of the paper's 64 costs a quarter of it"),
        )
    base = 16 if n < 5_000 else 32
    levels = min(5, max(1, round(math.log2(side / 7))))
    channels = [min(base << level, 256) for level in range(levels)]
    return (
        Setting("name", "cnn", f"{n:,} images {facts.shape}: a small net trains fast and well"),
        Setting(
            "channels",
            channels,
            f"{levels} level(s): pooling leaves about {side >> levels} of {side} pixels a side",
        ),
        Setting("hidden", [4 * base], f"{n:,} samples: more units would learn them by heart")
        if n < 5_000
        else Setting("hidden", [4 * base], f"{n:,} samples carry a layer of this width"),
    )


def _series_model(facts: Facts) -> tuple[Setting, ...]:
    steps, channels = facts.shape
    operator = facts.task == "regression" and steps >= SMOOTH
    if facts.has_field_targets and (operator or facts.is_rollout):
        return _fno(facts, f"a value at each of {steps} points from {channels} channel(s)")
    units = 32 if facts.samples < 1_000 else 64 if facts.samples < 20_000 else 128
    settings: tuple[Setting, ...] = (
        Setting("name", "lstm", f"samples are series: {steps} steps of {channels} channel(s)"),
        Setting("units", units, f"{facts.samples:,} samples: a state of this size generalizes"),
        Setting("depth", 1, "one layer; a second one where the training loss stays high"),
    )
    if facts.samples < 1_000:
        settings += (Setting("dropout", 0.2, "few samples: dropout against learning by heart"),)
    if facts.has_field_targets:
        settings += (Setting("sequences", True, "the label has an entry for each step"),)
    return settings


def _field_model(facts: Facts) -> tuple[Setting, ...]:
    side = min(facts.shape[:2])
    levels = unet_levels(*facts.shape[:2])
    operator = facts.task in ("regression", "rollout") and facts.has_real_inputs
    if operator and side >= SMOOTH:
        return _fno(facts, "fields of real numbers: Fourier modes suit solutions of equations")
    if levels < 3 and side >= SMOOTH:
        what = f"{facts.shape[0]} x {facts.shape[1]} cannot be halved twice, as a U-Net needs it"
        return _fno(facts, what)
    base = 16 if facts.samples < 5_000 else 32
    return (
        Setting("name", "unet", f"an output for every pixel of {facts.shape[:2]}"),
        Setting(
            "channels",
            [base << level for level in range(levels)],
            f"{levels} level(s): the size can be halved {levels - 1} time(s); {facts.samples:,} "
            "samples",
        ),
        Setting("groups", 8, "of the group norms; divides all channels"),
    )


def _fno(facts: Facts, why: str) -> tuple[Setting, ...]:
    side = min(facts.shape[:-1])
    width = 24 if facts.samples < 5_000 else 32
    return (
        Setting("name", "fno", why),
        Setting("width", width, f"{facts.samples:,} samples: wider nets want more of them"),
        Setting(
            "modes",
            min(12, side // 4),
            f"of at most {side // 2}: the smooth part of a field",
        ),
        Setting("depth", 4, "as in the paper (Li et al., 2021)"),
    )


def unet_levels(height: int, width: int) -> int:
    """Levels of a U-Net: as often as both sizes can be halved, to no less than 4, at most 4."""
    levels = 1
    while levels < 4 and not (height | width) >> (levels - 1) & 1:
        if min(height, width) >> levels < 4:
            break
        levels += 1
    return levels


def _gpt(facts: Facts) -> tuple[Setting, ...]:
    window = next(iter(facts.features.values())).shape[0] - 1
    tokens = facts.samples * window
    sizes = {1_000_000: (64, 2, 4), 20_000_000: (128, 4, 4), 200_000_000: (256, 6, 8)}
    width, depth, heads = next((size for most, size in sizes.items() if tokens < most), (512, 8, 8))
    settings: tuple[Setting, ...] = (
        Setting("name", "gpt", f"texts of {facts.classes:,} different tokens: a transformer"),
        Setting("width", width, f"{tokens:,} tokens to learn from"),
        Setting("depth", depth, "grows with the width"),
        Setting("heads", heads, f"{width // heads} channels in each"),
    )
    if tokens < 1_000_000:
        settings += (Setting("dropout", 0.1, "a short text: dropout against learning by heart"),)
    return settings
