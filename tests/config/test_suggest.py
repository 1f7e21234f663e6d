"""Suggested configurations: each loads, and its model is built for the data."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.cli.init import check
from mpidl.config import build_config, load_config
from mpidl.config.suggest import Facts, suggest, write_toml
from mpidl.config.suggest.collect import Wish, find_parts, read_manifest
from mpidl.config.suggest.data import class_weights, suggest_augmentation, suggest_loss
from mpidl.config.suggest.facts import choose_layout, power_below
from mpidl.config.suggest.model import suggest_model, unet_levels
from mpidl.config.suggest.training import choose_epochs, divide
from mpidl.data.manifest import Field, Manifest, Shard, Statistics, new_manifest
from mpidl.errors import ConfigError, DataError
from mpidl.train.build import build_for_data
from mpidl.train.inputs import choose_task

HASH = "0" * 64
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12)


def manifest(samples: int, **fields: Field) -> Manifest:
    return new_manifest("shards", fields, (Shard("a.h5", samples, 1, HASH),))


def real(*shape: int, role: Any = "feature") -> Field:
    return Field("float32", shape, role, statistics=Statistics.with_checksum(1.0, 2.0))


def pixels(*shape: int) -> Field:
    return Field("uint8", shape, "feature", statistics=Statistics.with_checksum(100.0, 50.0))


def classes(count: int, *shape: int, names: tuple[str, ...] | None = None) -> Field:
    return Field("int64", shape, "label", classes=count, class_names=names)


def facts_of(samples: int, x: Field, label: Field | None = None, **more: Any) -> Facts:
    fields = {"x": x} | ({} if label is None else {"label": label})
    facts = read_manifest(manifest(samples, **fields), [Path("d")], None, Wish(), 4)
    return Facts(**{**{k: getattr(facts, k) for k in facts.__dataclass_fields__}, **more})


def model_of(facts: Facts) -> dict[str, Any]:
    return {setting.key: setting.value for setting in suggest_model(facts).settings}


# --- a whole configuration, for any data ---


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[Manifest, str]:
    """A manifest of one or two features and a label that a task can use, and the task asked for."""
    sides = st.sampled_from([1, 2, 3, 5, 8, 12, 16, 17, 28, 32, 48])
    axes = draw(st.integers(0, 4))
    shape = tuple(draw(sides) for _ in range(min(axes, 2)))
    shape += tuple(draw(st.integers(1, 4)) for _ in range(axes - len(shape)))
    samples = draw(st.sampled_from([1, 2, 3, 7, 60, 999, 5_000, 60_000, 300_000, 10**9]))
    bytes_ = draw(st.booleans())
    name, other, label_name = draw(st.lists(NAMES.filter(lambda n: n != "."), min_size=3,
                                            max_size=3, unique=True))  # fmt: skip
    feature = pixels(*shape) if bytes_ else real(*shape)
    fields = {name: feature}
    if draw(st.booleans()):
        fields[other] = feature
    kinds = ["classes", "number", "vector", "field", "mask", "tokens", "tags", "trajectories"]
    kind = draw(st.sampled_from(kinds))
    space = shape[:-1] if axes not in (0, 2) else shape
    task = "auto"
    if kind == "tokens":
        window = draw(st.integers(2, 40))
        fields = {name: Field("uint16", (window,), "feature", classes=draw(st.integers(1, 300)))}
    elif kind == "trajectories" and 1 <= axes <= 3:
        fields, task = {name: real(draw(st.integers(2, 9)), *shape)}, "rollout"
    elif kind == "classes":
        fields[label_name] = classes(draw(st.integers(2, 120)))
    elif kind == "tags":
        task = "multilabel"
        fields[label_name] = classes(2, draw(st.integers(1, 5)))
    elif kind == "mask" and axes in (2, 3) and math.prod(space) > 1:
        fields[label_name] = classes(draw(st.integers(2, 12)), *space)
        task = "segmentation" if len(space) == 1 or draw(st.booleans()) else "auto"
    else:
        shapes = {"number": (), "vector": (3,), "field": (*space, draw(st.integers(1, 3)))}
        fields[label_name] = real(*shapes.get(kind, ()), role="label")
    return manifest(samples, **fields), task


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(data_sets(), st.integers(1, 200), st.sampled_from([None, 1, 2, 3, 8]), NAMES)
def test_what_is_suggested_loads_and_its_model_is_built(
    tmp_path_factory: pytest.TempPathFactory,
    data_set: tuple[Manifest, str],
    cores: int,
    ranks: int | None,
    folder: str,
) -> None:
    found, task = data_set
    wish = Wish(task=task, ranks=ranks)
    facts = read_manifest(found, [Path(folder)], None, wish, cores)
    if ranks is not None and power_below(2 * ranks - 1) > found.samples:
        with pytest.raises(ConfigError, match=r"some would have none|no model goes"):
            suggest(facts, "name")  # whichever it sees first
        return
    if task == "rollout" and (facts.kind == "other" or min(facts.shape[:-1], default=9) < 4):
        with pytest.raises(ConfigError, match="no model goes from frames"):
            suggest(facts, "name")
        return
    suggestion = suggest(facts, "name")
    path = tmp_path_factory.getbasetemp() / "run.toml"
    path.write_text(write_toml(suggestion.blocks, ["a header of\nseveral lines"]))
    notes: list[str] = []
    config = load_config(path, note=notes.append)
    assert notes == [], "settings without an effect"
    assert check(path.read_text(), facts, "run.toml", []) > 0
    batch = config.train.global_batch
    assert batch == power_below(batch) <= max(1, found.samples)
    assert batch % config.train.micro_batches == 0 and suggestion.ranks <= batch
    assert suggestion.ranks == ranks or suggestion.ranks <= cores
    assert config.task.name == facts.task and config.data.folders == (str(Path(folder)),)


def test_a_line_that_is_commented_out_can_be_used() -> None:
    """What is only shown must load too, when its "# " is taken away."""
    uneven = facts_of(500, pixels(28, 28), classes(3), counts=(400, 80, 20))
    for facts in (
        uneven,
        facts_of(500, real(32, 32, 2), real(32, 32, 1, role="label")),
        facts_of(500, real(5), real(role="label")),
    ):
        text = write_toml(suggest(facts, "name").blocks, ())
        lines = []
        for line in text.splitlines():
            bare = line.removeprefix("# ")
            key = bare.partition(" = ")[0]
            setting = " = " in bare and key.isidentifier()
            lines.append(bare if setting or bare.startswith("[") else line)
        config = build_config(tomllib.loads("\n".join(lines)), "run.toml")
        assert "#" not in "".join(line for line in lines if " = " in line)
        build_for_data(config.model, choose_task(facts.manifest, config),
                       NumpyOps())  # fmt: skip
    text = write_toml(suggest(uneven, "name").blocks, ())
    assert "# class_weights = [0.4167, 2.083, 8.333]" in text and '# balance = "sqrt"' in text
    assert "class_weights" not in tomllib.loads(text).get("loss", {})


# --- single rules ---


@pytest.mark.parametrize(
    ("field", "label", "wanted"),
    [
        (pixels(28, 28), classes(10), "image"),
        (real(64, 48), classes(10), "image"),
        (real(128, 9), classes(6), "series"),
        (real(100, 24), real(1, role="label"), "series"),
        (real(64, 64), real(64, 64, role="label"), "image"),
        (real(64, 2), real(64, 2, role="label"), "series"),
        (real(64, 32), real(64, 1, role="label"), "series"),
    ],
)
def test_a_table_of_numbers_is_an_image_or_a_series(
    field: Field, label: Field, wanted: str
) -> None:
    assert choose_layout(field, {"label": label}) == wanted


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (facts_of(200, real(7), classes(3)), {"name": "mlp", "hidden": [32]}),
        (facts_of(60_000, real(7), real(role="label")), {"name": "mlp", "hidden": [256, 256]}),
        (facts_of(900, pixels(28, 28), classes(3)), {"name": "cnn", "channels": [16, 32]}),
        (facts_of(60_000, pixels(32, 32, 3), classes(10)), {"name": "resnet", "depth": 10}),
        (facts_of(60_000, pixels(64, 64, 1), classes(10)), {"name": "cnn",
                                                            "channels": [32, 64, 128]}),
        (facts_of(500, real(50, 3), classes(2)), {"name": "lstm", "units": 32}),
        (facts_of(500, pixels(64, 64, 3), classes(4, 64, 64)), {"name": "unet",
                                                                "channels": [16, 32, 64, 128]}),
        (facts_of(500, pixels(33, 33, 3), classes(4, 33, 33)), {"name": "fno", "modes": 8}),
        (facts_of(500, real(64, 64, 2), real(64, 64, 1, role="label")), {"name": "fno"}),
        (facts_of(500, real(128, 1), real(128, 1, role="label")), {"name": "fno"}),
        (facts_of(99, Field("uint8", (129,), "feature", classes=256)), {"name": "gpt",
                                                                       "width": 64}),
    ],
    ids=str,
)  # fmt: skip
def test_the_model_follows_from_shape_and_samples(facts: Facts, wanted: dict[str, Any]) -> None:
    assert model_of(facts).items() >= wanted.items()


def test_a_language_model_is_suggested_for_tokens_without_a_label() -> None:
    assert facts_of(99, Field("uint8", (129,), "feature", classes=256)).task == "language_model"


@given(
    st.integers(1, 10**9),
    st.integers(1, 1 << 28),
    st.sampled_from([16, 128]),
    st.integers(1, 512),
    st.none() | st.integers(1, 64),
)
def test_steps_are_divided_evenly(
    samples: int, elements: int, largest: int, cores: int, ranks: int | None
) -> None:
    try:
        plan = divide(samples, elements, largest, cores, ranks)
    except ConfigError:
        assert ranks is not None and power_below(2 * ranks - 1) > samples
        return
    for number in (plan.batch, plan.micro_batches):
        assert number & (number - 1) == 0
    assert plan.batch <= samples and plan.ranks <= plan.batch
    assert plan.batch % plan.micro_batches == 0 and plan.micro_batches >= plan.ranks
    assert plan.ranks == ranks or plan.ranks <= cores


def test_a_step_has_bounded_memory() -> None:
    assert divide(10**6, 100, 128, 8, None).batch == 128
    assert divide(10**6, 1 << 20, 128, 8, None).batch == 16


def test_small_data_get_more_epochs_within_limits() -> None:
    assert choose_epochs(1_000, 50, 2_000) == 100
    assert choose_epochs(10**7, 128, 2_000) == 3
    assert choose_epochs(12_800, 128, 1_000) == 10


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_unet_of_so_many_levels_halves_both_sizes(height: int, width: int) -> None:
    step = 1 << (unet_levels(height, width) - 1)
    assert height % step == 0 and width % step == 0


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=9))
def test_weighted_classes_count_alike(counts: list[int]) -> None:
    weights = class_weights(tuple(counts))
    shares = [weight * count / sum(counts) for weight, count in zip(weights, counts, strict=True)]
    assert all(math.isclose(share, 1 / len(counts), rel_tol=1e-3) for share in shares)


def test_even_classes_get_no_weights() -> None:
    assert suggest_loss(facts_of(500, real(3), classes(2), counts=(200, 300))) is None
    assert suggest_loss(facts_of(500, real(3), classes(3), counts=(0, 10, 490))) is None


@pytest.mark.parametrize(
    ("x", "label", "flips"),
    [
        (pixels(32, 32, 3), classes(2), True),
        (pixels(32, 32, 3), classes(2, names=("turn left", "turn right")), False),
        (pixels(32, 32, 3), classes(2, names=("b", "d")), False),
        (pixels(28, 28), classes(2), False),
        (real(32, 32, 3), classes(2), False),
        (pixels(32, 32, 3), real(role="label"), False),
    ],
)
def test_images_are_mirrored_only_where_that_is_harmless(
    x: Field, label: Field, flips: bool
) -> None:
    block = suggest_augmentation(facts_of(500, x, label))
    assert block is not None
    assert [s.active for s in block.settings if s.key == "flip"] == [flips]
    assert suggest_augmentation(facts_of(500, real(8), label)) is None


# --- refusals ---


def test_several_fields_are_joined_or_one_must_be_named() -> None:
    both = manifest(9, a=real(3), b=real(2), y=classes(2))
    assert list(read_manifest(both, [Path("d")], None, Wish(), 1).features) == ["a", "b"]
    other = manifest(9, a=real(3), b=real(5, 5, 2), y=classes(2))
    with pytest.raises(DataError, match="cannot be joined") as caught:
        read_manifest(other, [Path("d")], None, Wish(), 1)
    assert "--feature" in caught.value.remedy
    chosen = read_manifest(other, [Path("d")], None, Wish(features=("b",)), 1)
    assert list(chosen.features) == ["b"]
    two = manifest(9, a=real(3), y=classes(2), z=real(role="label"))
    with pytest.raises(DataError, match="several labels") as caught:
        read_manifest(two, [Path("d")], None, Wish(), 1)
    assert "--label" in caught.value.remedy


def test_no_label_says_how_to_get_one() -> None:
    with pytest.raises(DataError, match="no field that is a label") as caught:
        facts_of(9, real(3))
    assert "--label NAME" in caught.value.remedy


def test_a_folder_with_parts_is_both(tmp_path: Path) -> None:
    assert find_parts(tmp_path) == (tmp_path, None)
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    assert find_parts(tmp_path) == (tmp_path / "train", tmp_path / "test")
    (tmp_path / "manifest.json").touch()
    assert find_parts(tmp_path) == (tmp_path, None)
