"""What a model is given of a data set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.config import Config, ModelConfig, build_config
from mpidl.data.manifest import Field, Manifest, Shard, Statistics, new_manifest
from mpidl.errors import ConfigError, DataError, MpidlError
from mpidl.models import MODELS
from mpidl.options import Place
from mpidl.task import InputSpec, Task, TaskConfig
from mpidl.train.build import build_for_data, build_model
from mpidl.train.inputs import SIZES, Inputs, choose_task


def manifest(shape: tuple[int, ...], **feature: Any) -> Manifest:
    fields = {
        "x": Field("float32", shape, "feature", **feature),
        "y": Field("int64", (), "label", 3),
    }
    return new_manifest("shards", fields, (Shard("a.h5", 10, 1, "0" * 64),))


def choose(name: str, **options: Any) -> ModelConfig:
    return ModelConfig.read({"name": name} | options, Place(("model",), lambda key: key))


def config(model: str, loss: str = "cross_entropy", **data: Any) -> Config:
    tree = {"data": {"train": "data"} | data, "model": {"name": model}, "loss": {"name": loss}}
    return build_config(tree, "test")


def spec(shape: tuple[int, ...], model: str, **data: Any) -> Any:
    return choose_task(manifest(shape), config(model, **data)).spec


def task(found: InputSpec, **section: Any) -> Task:
    return TaskConfig.read(section, Place(("task",))).create(found)


def test_every_model_says_what_it_takes() -> None:
    assert {MODELS[name].samples for name in MODELS} <= {*SIZES, "any"}


@pytest.mark.parametrize(
    ("model", "layout", "shape"),
    [
        ("cnn", "auto", (16, 16, 1)),
        ("mlp", "auto", (16, 16, 1)),
        ("lstm", "auto", (16, 16)),
        ("vit", "image", (16, 16, 1)),
        ("lstm", "series", (16, 16)),
        ("mlp", "series", (16, 16)),
    ],
)
def test_the_layout_of_two_extents(model: str, layout: Any, shape: tuple[int, ...]) -> None:
    found = spec((16, 16), model, layout=layout)
    assert found.shape == shape and found.features[0].shape == (16, 16)


@pytest.mark.parametrize("shape", [(20,), (16, 16, 3), (2, 3, 4, 5)])
def test_other_extents_are_what_they_are(shape: tuple[int, ...]) -> None:
    assert spec(shape, "mlp").shape == shape


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("shape", [(16,), (16, 16), (16, 16, 3), (3, 4, 5, 6)])
def test_a_model_is_a_classifier_of_the_samples_or_refused(
    model: str, shape: tuple[int, ...]
) -> None:
    try:
        built = build_for_data(choose(model, size="tiny"), task(spec(shape, model)), NumpyOps())
    except MpidlError as error:
        assert error.remedy
    else:
        assert built.output_shape == (3,)


def test_a_layout_for_other_extents_is_said_to_do_nothing() -> None:
    notes: list[str] = []
    choose_task(manifest((20,)), config("mlp", layout="series"), notes.append)
    assert len(notes) == 1 and "data.layout" in notes[0]


def test_outputs_for_every_step_are_refused() -> None:
    options = {"units": 4, "depth": 1, "sequences": True}
    with pytest.raises(ConfigError, match="classification"):
        build_for_data(choose("lstm", **options), task(spec((8, 2), "lstm")), NumpyOps())


@pytest.mark.parametrize("data", [{}, {"mean": 2.0}, {"std": 4.0}])
def test_normalization(data: dict[str, float]) -> None:
    notes: list[str] = []
    for std in (0.0, 3.0):
        held = manifest((4,), statistics=Statistics.with_checksum(7.0, std))
        found = choose_task(held, config("mlp", **data), notes.append).spec
        (field,) = found.features
        assert field.mean == (data.get("mean", 7.0),)
        assert field.std == (data.get("std", std or 1.0),)
    assert len(notes) == ("std" not in data)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (
            "mlp",
            {"hidden": "abc"},
            "hidden is 'abc', but must be a list, in it a whole number of at least 1",
        ),
        ("mlp", {"hidden": [-3]}, "at least 1"),
        ("mlp", {"hidden": [0]}, "at least 1"),
        ("mlp", {"hidden": [10**12, 10**12]}, "cannot build 'mlp'"),
        ("mlp", {"hiden": [3]}, "did you mean 'model.hidden'?"),
        ("mlp", {"size": "tinny"}, "did you mean 'tiny'?"),
        ("mpl", {}, "did you mean 'mlp'?"),
        ("lstm", {"dropout": 1.0}, "dropout is 1.0"),
        ("lstm", {"units": 2.5}, "units is 2.5"),
        ("resnet", {"synchronized": "no"}, "true or false"),
        ("resnet18", {"width": "8"}, "width is '8'"),
        ("resnet", {"depth": 7}, "one of 10, 18"),
    ],
)
def test_options_that_cannot_be(model: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(choose(model, **options), (8, 8, 3), 3, NumpyOps())
    assert (
        words in str(caught.value)
        and caught.value.where.startswith("model.")
        and caught.value.remedy
    )


@pytest.mark.parametrize(
    "options", [{"hidden": []}, {"hidden": (3, 4)}, {"size": ""}, {"hidden": [3], "size": "real"}]
)
def test_options_that_can(options: dict[str, Any]) -> None:
    assert build_model(choose("mlp", **options), (8,), 3, NumpyOps()).output_shape == (3,)


def test_the_label_is_no_feature() -> None:
    with pytest.raises(DataError, match="both the feature and the label"):
        spec((3,), "mlp", feature="y")


def targets(shape: tuple[int, ...], target: tuple[int, ...], dtype: str = "float32") -> Manifest:
    """A data set for a regression."""
    fields = {"x": Field("float32", shape, "feature"), "y": Field(dtype, target, "label")}
    return new_manifest("shards", fields, (Shard("a.h5", 10, 1, "0" * 64),))


@pytest.mark.parametrize(
    ("model", "shape", "target", "output"),
    [
        ("mlp", (6,), (), (1,)),
        ("mlp", (6,), (3,), (3,)),
        ("mlp", (6,), (4, 2), (8,)),  # a field as one vector
        ("unet", (16, 16, 2), (16, 16, 3), (16, 16, 3)),
        ("unet", (16, 16), (16, 16), (16, 16, 1)),
        ("fno", (32, 2), (32, 1), (32, 1)),
        ("fno", (32, 2), (32,), (32, 1)),
        ("cnn", (16, 16), (2,), (2,)),
    ],
)
def test_outputs_have_the_shape_of_real_targets(
    model: str, shape: tuple[int, ...], target: tuple[int, ...], output: tuple[int, ...]
) -> None:
    layout = "series" if model == "fno" else "auto"
    found = choose_task(targets(shape, target), config(model, "mse", layout=layout)).spec
    assert found.target.classes is None and found.target.shape == target
    built = build_for_data(choose(model, size="tiny"), task(found), NumpyOps())
    assert built.output_shape == output
    raw = np.arange(2 * math.prod(target), dtype=np.float64).reshape(2, *target)
    given = Inputs(task(found), built).targets({"y": raw})
    assert given.shape == (2, *target) and given.dtype == np.float32
    np.testing.assert_array_equal(given.reshape(raw.shape), raw)


def test_outputs_that_cannot_have_the_shape_of_the_targets_are_refused() -> None:
    found = choose_task(targets((16, 16), (5, 7)), config("unet", "mse")).spec
    with pytest.raises(ConfigError, match=r"outputs of shape .* but the label 'y'") as caught:
        build_for_data(choose("unet", size="tiny"), task(found), NumpyOps())
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("loss", "dtype", "words"),
    [
        ("cross_entropy", "float32", "compares classes"),
        ("mse", "int64", "compares real values"),
        ("bce", "uint8", "compares real values"),
    ],
)
def test_a_loss_that_does_not_fit_the_labels_is_refused(loss: str, dtype: str, words: str) -> None:
    with pytest.raises(MpidlError, match=words) as caught:
        choose_task(targets((6,), (), dtype), config("mlp", loss))
    assert "task.name" in caught.value.remedy


def test_other_data_for_a_regression_are_refused() -> None:
    found = choose_task(targets((6,), (3,)), config("mlp", "huber")).spec
    checked = task(found)
    checked.check(targets((6,), (3,), "float64"), "other")
    for other in (targets((6,), (2,)), targets((6,), (3,), "int64"), manifest((6,))):
        with pytest.raises(DataError, match="real values 'y'"):
            checked.check(other, "other")
