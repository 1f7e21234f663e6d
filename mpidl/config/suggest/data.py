"""Suggests the sections on the data: what is read, the task, the loss, augmentation."""

from __future__ import annotations

from mpidl.config.suggest.facts import Block, Facts, Setting

UNEVEN = 3.0  # times: classes that differ by more are worth a thought
LISTED = 50  # classes whose weights are written down
FLIPPED = ("left", "right")  # words of classes that a mirror exchanges


def suggest_data(facts: Facts) -> Block:
    """The section [data]."""
    folders: object = facts.folders[0] if len(facts.folders) == 1 else list(facts.folders)
    settings = [Setting("train", folders, f"{facts.samples:,} samples")]
    if facts.test is not None:
        settings.append(
            Setting("test", facts.test, "chooses the best checkpoint; never trained on")
        )
    else:
        why = "none known: results on the training data flatter; see mpidl shard --split 0.9,0.1"
        settings.append(Setting("test", "FOLDER", why, active=False))
    settings += _names(facts)
    if facts.layout is not None:
        settings.append(_layout(facts))
    if facts.kind != "tokens":
        settings.append(_normalization(facts))
    if facts.task == "classification" and facts.imbalance >= UNEVEN and all(facts.counts):
        settings.append(
            Setting("balance", "sqrt", f"{_spread(facts)}: draws rare ones more often", False)
        )
    return Block("data", tuple(settings))


def _names(facts: Facts) -> list[Setting]:
    """The fields, where there is a choice."""
    found = []
    for key, chosen in (("feature", facts.features), ("label", facts.labels)):
        others = [n for n, f in facts.manifest.fields.items() if f.role == key and n not in chosen]
        odd = [n for n in chosen if facts.manifest.fields[n].role != key]
        if len(chosen) > 1:
            why = "all of this kind, joined along their channels"
            found.append(Setting(key, list(chosen), why))
        elif chosen and (others or odd):
            found.append(Setting(key, next(iter(chosen)), "the one that was asked for"))
    return found


def _layout(facts: Facts) -> Setting:
    field = next(field for field in facts.features.values() if len(field.shape) == 2)
    rows, columns = field.shape
    if facts.layout == "image":
        why = f'{rows} x {columns} looks like a gray image; "series": {rows} steps of {columns}'
    else:
        why = f'{rows} steps of {columns} channel(s); "image" where they are rows and columns'
    return Setting("layout", facts.layout, why)


def _normalization(facts: Facts) -> Setting:
    if facts.is_bytes:
        return Setting("normalize", "field", "bytes share one unit: one mean and deviation")
    if facts.kind == "vector":
        return Setting("normalize", "channel", "each column has a unit, mean and deviation")
    return Setting("normalize", "channel", "channels may have different units and sizes")


def _spread(facts: Facts) -> str:
    """How uneven classes are, in words."""
    known = [count for count in facts.counts if count]
    return f"classes have {min(known):,} to {max(known):,} samples"


def suggest_task(facts: Facts) -> Block:
    """The section [task]."""
    settings = [Setting("name", facts.task, _why_task(facts))]
    if facts.task == "classification" and facts.classes >= 100:
        settings.append(
            Setting("top_k", 5, f"usual beside the accuracy of {facts.classes} classes")
        )
    if facts.task == "rollout":
        settings += _rollout(facts)
    if facts.task == "segmentation" and facts.ignore >= 0:
        classes = len(facts.counts)
        settings += [
            Setting("ignore", facts.ignore, "masks use this number for pixels without a class"),
            Setting("classes", classes, f"the others are 0 to {classes - 1}"),
        ]
    return Block("task", tuple(settings))


def _rollout(facts: Facts) -> list[Setting]:
    field = next(iter(facts.features.values()))
    found = []
    if field.shape[0] >= 3:
        why = "frames predicted from one another: more are slower, and stay closer to the truth"
        found.append(Setting("steps", 2, why))
    if len(field.shape) == 3 or not facts.frame_axes:
        why = f"frames {field.shape[1:]} have so many axes of space"
        found.append(Setting("dimensions", facts.frame_axes, why))
    return found


def _why_task(facts: Facts) -> str:
    label = ", ".join(repr(name) for name in facts.labels)
    if facts.task == "regression":
        if facts.look_like_classes:
            return f"{label}: real numbers, but few whole ones: for classes shard them as integers"
        return f"{label}: real numbers"
    if facts.task == "rollout":
        frames = next(iter(facts.features.values())).shape[0]
        return f"trajectories of {frames} frames {facts.shape}: the next frame is the target"
    if facts.task == "language_model":
        return "tokens without a label: the next token is the target"
    if facts.task == "segmentation":
        return f"{label}: a class for each place of the input"
    if facts.task == "classification" and facts.classes * 5 > facts.samples:
        return f"{label}: {facts.classes:,} classes; if they are amounts, shard with --real-labels"
    return f"{label}: one of {facts.classes:,} classes" if facts.classes else f"{label}: as asked"


def suggest_loss(facts: Facts) -> Block | None:
    """The section [loss], where another one than the task's first may be better."""
    if facts.task in ("regression", "rollout"):
        why = "the default is mse; huber where outliers spoil it"
        if facts.has_field_targets:
            why = "the default is mse; relative_l2 compares fields of different size fairly"
        name = "relative_l2" if facts.has_field_targets else "huber"
        return Block("loss", (Setting("name", name, why, active=False),))
    known = [count for count in facts.counts if count]
    if facts.imbalance < UNEVEN or len(known) < len(facts.counts):
        return None
    what = "pixels" if facts.task == "segmentation" else "samples"
    why = f"classes have {min(known):,} to {max(known):,} {what}: weights count rare ones more"
    settings = [Setting("name", "cross_entropy", why, active=False)]
    if len(known) <= LISTED:
        weights = class_weights(facts.counts)
        settings.append(
            Setting("class_weights", weights, "samples / (classes x samples of the class)", False)
        )
    return Block("loss", tuple(settings))


def class_weights(counts: tuple[int, ...]) -> list[float]:
    """Weights with which all classes count alike, and the mean over samples is 1."""
    total = sum(counts)
    return [float(f"{total / (len(counts) * count):.4g}") for count in counts]


def suggest_augmentation(facts: Facts) -> Block | None:
    """The section [augment], for images and fields."""
    if facts.kind != "image" or min(facts.shape[:2]) < 8 or facts.is_rollout:
        return None
    if facts.task == "regression":
        if not facts.has_field_targets:
            why = "a shifted or mirrored image may have another value: only where it has not"
            return Block("augment", (Setting("flip", {"horizontal": 0.5}, why, active=False),))
        why = "where fields are periodic and the law is the same everywhere"
        return Block("augment", (Setting("roll", {}, why, active=False),))
    padding = max(1, min(facts.shape[:2]) // 8)
    mode = "reflect" if facts.has_field_targets else "zero"
    shift = Setting(
        "crop",
        {"padding": padding, "mode": mode},
        f"shifts by up to {padding} pixels do not change the class",
        active=facts.is_bytes,
    )
    return Block("augment", (shift, _flip(facts)))


def _flip(facts: Facts) -> Setting:
    value = {"horizontal": 0.5}
    words = [name.lower() for name in facts.class_names]
    if any(side in name for side in FLIPPED for name in words):
        return Setting("flip", value, "a mirror exchanges left and right, as classes do", False)
    if words and all(len(name) == 1 for name in words):
        return Setting("flip", value, "mirrored letters and digits are others: only if not", False)
    if not facts.is_bytes or facts.shape[2] != 3:
        return Setting(
            "flip", value, "only where a mirrored sample is one too, not for text", False
        )
    return Setting("flip", value, "mirrored photographs are photographs; not for text")
