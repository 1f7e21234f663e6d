"""What a model is given of a data set."""

from __future__ import annotations

from typing import Any

import pytest

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.config import DataConfig, ModelConfig
from mpidl.data.manifest import Field, Manifest, Shard, Statistics, new_manifest
from mpidl.errors import ConfigError, DataError, MpidlError
from mpidl.models import MODELS
from mpidl.options import Place
from mpidl.train.build import build_classifier, build_model
from mpidl.train.inputs import EXTENTS, input_spec


def manifest(shape: tuple[int, ...], **feature: Any) -> Manifest:
    fields = {
        "x": Field("float32", shape, "feature", **feature),
        "y": Field("int64", (), "label", 3),
    }
    return new_manifest("shards", fields, (Shard("a.h5", 10, 1, "0" * 64),))


def choose(name: str, **options: Any) -> ModelConfig:
    return ModelConfig.read({"name": name} | options, Place(("model",), lambda key: key))


def spec(shape: tuple[int, ...], model: str, **data: Any) -> Any:
    return input_spec(manifest(shape), DataConfig(train="data", **data), "data", model)


def test_every_model_says_what_it_takes() -> None:
    assert {MODELS[name].samples for name in MODELS} <= {*EXTENTS, "any"}


@pytest.mark.parametrize(
    ("model", "layout", "shape"),
    [
        ("cnn", "auto", (16, 16, 1)), ("mlp", "auto", (16, 16, 1)), ("lstm", "auto", (16, 16)), ("vit", "image", (16, 16, 1)),
        ("lstm", "series", (16, 16)), ("mlp", "series", (16, 16)), ("my own", "auto", (16, 16, 1)),
    ],
)  # fmt: skip
def test_the_layout_of_two_extents(model: str, layout: Any, shape: tuple[int, ...]) -> None:
    found = spec((16, 16), model, layout=layout)
    assert found.shape == shape and found.field_shape == (16, 16)


@pytest.mark.parametrize("shape", [(20,), (16, 16, 3), (2, 3, 4, 5)])
def test_other_extents_are_what_they_are(shape: tuple[int, ...]) -> None:
    assert spec(shape, "mlp").shape == shape


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("shape", [(16,), (16, 16), (16, 16, 3), (3, 4, 5, 6)])
def test_a_model_is_a_classifier_of_the_samples_or_refused(
    model: str, shape: tuple[int, ...]
) -> None:
    try:
        built = build_classifier(choose(model, size="tiny"), spec(shape, model), NumpyOps())
    except MpidlError as error:
        assert error.remedy
    else:
        assert built.output_shape == (3,)


def test_a_layout_for_other_extents_is_said_to_do_nothing() -> None:
    notes: list[str] = []
    input_spec(
        manifest((20,)), DataConfig(train="data", layout="series"), "data", "mlp", notes.append
    )
    assert len(notes) == 1 and "data.layout" in notes[0]


def test_outputs_for_every_step_are_refused() -> None:
    options = {"units": 4, "depth": 1, "sequences": True}
    with pytest.raises(ConfigError, match="trains classifiers"):
        build_classifier(choose("lstm", **options), spec((8, 2), "lstm"), NumpyOps())


@pytest.mark.parametrize("config", [{}, {"mean": 2.0}, {"std": 4.0}])
def test_normalization(config: dict[str, float]) -> None:
    notes: list[str] = []
    for std in (0.0, 3.0):
        held = manifest((4,), statistics=Statistics.sealed(7.0, std))
        found = input_spec(held, DataConfig(train="data", **config), "data", "mlp", notes.append)
        assert (found.mean, found.std) == (config.get("mean", 7.0), config.get("std", std or 1.0))
    assert len(notes) == ("std" not in config)


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
