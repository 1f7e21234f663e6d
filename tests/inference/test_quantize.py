"""Smaller models: what is stored, what is exact, what is close, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.backend.contract.int8 import pack_int8, quantize_columns
from mpidl.backend.numpy_ops import NumpyOps
from mpidl.comm.context import init
from mpidl.errors import CheckpointError
from mpidl.inference.fold import fold, join
from mpidl.inference.quantized import load, matrices, prune, store
from mpidl.models import build_layers
from mpidl.nn import BatchNorm, Conv2D, Dense, Flatten, MaxPool2D, Model, Residual
from mpidl.train import checkpoint as ckpt

MODES = ("none", "weight_only", "dynamic")
META = ckpt.Meta(ckpt.VERSION, 3, 0, 3, {}, {}, {}, {}, None)


def gpt() -> Model:
    options = {"width": 32, "depth": 2, "heads": 4}
    model = Model(build_layers("gpt", (20,), 50, options), (20,), NumpyOps())
    model.parameters.initialize(0)
    return model


def convolutional(dtype: Any = np.float32) -> Model:
    """Batch norms in the model itself, in a body and in a shortcut; one has none to fold into."""
    layers = [
        Conv2D(16, 3, bias=True),
        BatchNorm(relu=True),
        Residual(
            [Conv2D(24, 3, bias=False), BatchNorm(relu=True), Conv2D(24, 3), BatchNorm()],
            [Conv2D(24, 1, bias=False), BatchNorm()],
            relu=True,
        ),
        Conv2D(8, 3, stride=2, pad=1, relu=True),
        BatchNorm(),
        Flatten(),
        Dense(10),
    ]
    model = Model(layers, (9, 8, 16), NumpyOps(), dtype=dtype)
    model.parameters.initialize(1)
    rng = np.random.default_rng(2)
    for values in (model.parameters.values, model.parameters.state):
        values[...] += 0.05 * rng.standard_normal(values.size)
    for name in model.parameters.state_slots:
        if name.endswith("running_var"):
            model.parameters.value(name)[...] = rng.uniform(
                0.3, 2, model.parameters.value(name).shape
            )
    return model


def copy_of(model: Model, like: Any) -> Model:
    twin = like()
    twin.parameters.values[...] = model.parameters.values
    if model.parameters.state.size:
        twin.parameters.state[...] = model.parameters.state
    return twin


def about_for(model: Model, mode: Any, storage: Any = "float32", folded: bool = False) -> Any:
    names = tuple(name for _, name in matrices(model)) if mode != "none" else ()
    order = tuple(name for name in model.parameters.slots if name in names)
    return ckpt.Quantized(mode, storage, order, folded, 0.0)


def saved(buffers: ckpt.Buffers, about: ckpt.Quantized) -> ckpt.Checkpoint:
    meta = msgspec.structs.replace(META, quantized=about)
    return ckpt.Checkpoint(Path("x.h5"), meta, buffers, ckpt.reader.RunState())


@given(st.integers(1, 40), st.integers(1, 70), st.floats(-30, 30), st.integers(0, 99))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_int8_is_within_half_a_step_of_each_column(
    k: int, cols: int, exponent: float, seed: int
) -> None:
    w = np.random.default_rng(seed).standard_normal((k, cols)) * 10**exponent
    w = w.astype(np.float32)
    numbers, scales = quantize_columns(w)
    assert np.abs(numbers.astype(int)).max() <= 127
    assert (np.abs(numbers * scales.astype(float) - w) <= scales * 0.5001).all()
    packed = pack_int8(numbers, scales)
    split = packed.panels.transpose(1, 3, 0, 2).reshape(-1, packed.scales.size)
    np.testing.assert_array_equal(split[:k, :cols], numbers)
    assert not split[k:].any() and not split[:, cols:].any()
    np.testing.assert_array_equal(packed.base, -128 * split.astype(int).sum(axis=0))


def test_int8_product_is_that_of_the_rounded_numbers(rng: np.random.Generator) -> None:
    """Exact in integers, so against float64 within the rounding of the result only."""
    x = rng.standard_normal((50, 301)).astype(np.float32)
    w = rng.standard_normal((301, 45)).astype(np.float32)
    numbers, scales = quantize_columns(w)
    ops, out = NumpyOps(), np.empty((50, 45), np.float32)
    ops.int8_dense(x, pack_int8(numbers, scales), None, out)
    steps = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    rounded = np.rint(x * (np.float32(127) / np.abs(x).max(axis=1, keepdims=True)))
    wanted = (rounded.astype(float) @ numbers.astype(float)) * steps * scales
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)
    x[3, 7] = np.nan
    ops.int8_dense(x, pack_int8(numbers, scales), None, out)
    assert np.isnan(out[3]).all() and np.isfinite(np.delete(out, 3, 0)).all()


def test_folding_is_exact(rng: np.random.Generator) -> None:
    model = convolutional(np.float64)
    x = rng.standard_normal((5, 9, 8, 16))
    wanted = model.forward(x)[0].copy()
    assert fold(model) == 4  # not the one behind a ReLU
    np.testing.assert_allclose(model.forward(x)[0], wanted, rtol=1e-12, atol=1e-12)
    join(model, norms=True)
    assert sum(type(layer) is BatchNorm for layer in model.layers) == 1
    np.testing.assert_allclose(model.forward(x)[0], wanted, rtol=1e-12, atol=1e-12)
    with pytest.raises(CheckpointError, match="no gradients"):
        model.forward(x, train=True)[1](np.ones_like(wanted), None)


def test_pooling_in_the_same_pass_changes_no_bit(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> Model:
        layers = [Conv2D(20, 3, relu=True), MaxPool2D(2), Conv2D(33, 3, bias=False),
                  BatchNorm(relu=True), MaxPool2D(3), Conv2D(9, 3), MaxPool2D(3, stride=1),
                  Flatten(), Dense(10)]  # fmt: skip
        made = Model(layers, (29, 26, 2), NumpyOps())
        made.parameters.initialize(3)
        return made

    model, x = make(), rng.standard_normal((5, 29, 26, 2)).astype(np.float32)
    x[1, 4, 5] = np.nan
    wanted = model.forward(x)[0].copy()
    fold(model)
    about = about_for(model, "dynamic", folded=True)
    buffers, joined, apart = store(model, about), make(), make()
    load(saved(buffers, about), joined)
    monkeypatch.setattr("mpidl.inference.fold.multiplies_int8", lambda layer: False)
    load(saved(buffers, about), apart)
    names = [[layer.name for layer in of.layers] for of in (joined, apart)]
    rest = ["max_pool2d3", "flatten1", "dense1"]  # its windows overlap
    assert names[0] == ["max_pool2d1", "max_pool2d2", "conv2d3", *rest]
    assert names[1] == ["conv2d1", "max_pool2d1", "batch_norm1", "max_pool2d2", "conv2d3", *rest]
    got = joined.forward(x)[0].copy()
    np.testing.assert_array_equal(got, apart.forward(x)[0])
    assert np.isnan(got[1]).all()
    assert np.nanmax(np.abs(got - wanted)) < 0.06 * np.nanmax(np.abs(wanted))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_pruning_takes_the_smallest(share: float) -> None:
    model = gpt()
    before = copy_of(model, gpt)
    prune(model, share)
    for _, name in matrices(model):
        old, new = (np.abs(m.parameters.value(name)) for m in (before, model))
        assert (new == 0).sum() == int(share * new.size)
        assert old[new == 0].max(initial=0) <= new[new > 0].min()
    changed = model.parameters.values != before.parameters.values
    assert changed.sum() == sum(
        int(share * model.parameters.value(name).size) for _, name in matrices(model)
    )


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [gpt, convolutional])
def test_a_loaded_model_computes_nearly_the_same(
    make: Any, mode: str, storage: str, rng: np.random.Generator
) -> None:
    model = make()
    x = rng.integers(0, 50, (6, 20)) if make is gpt else rng.standard_normal((6, 9, 8, 16))
    wanted = model.forward(x)[0].copy()
    folded = bool(fold(model))
    about = about_for(model, mode, storage, folded)
    buffers = store(model, about)
    assert ("int8" in buffers) == (mode != "none")
    other = make()
    load(saved(buffers, about), other)
    got = other.forward(x)[0].copy()
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    exact = mode == "none" and storage == "float32"
    assert error < (1e-5 if exact else 0.06), error
    if not exact:
        assert error > 1e-5  # it did compute with other numbers
    if mode == "dynamic":  # no sample's result depends on those beside it
        np.testing.assert_array_equal(other.forward(x[2:3])[0], got[2:3])


def test_what_does_not_fit_is_refused() -> None:
    model = gpt()
    about = about_for(model, "dynamic")
    buffers = store(model, about)
    spoiled: list[tuple[dict[str, Any], Any]] = [
        ({"int8": buffers["int8"][:-1]}, about),
        ({"int8": buffers["int8"].astype(np.int16)}, about),
        ({"scales": buffers["scales"][None]}, about),
        ({"parameters": buffers["parameters"][1:]}, about),
        ({}, msgspec.structs.replace(about, names=about.names[::-1])),
        ({}, msgspec.structs.replace(about, names=(*about.names, "nothing.weight"))),
        ({}, msgspec.structs.replace(about, names=(about.names[0], *about.names))),
        ({}, msgspec.structs.replace(about, storage="bfloat16")),
    ]
    for changes, other in spoiled:
        with pytest.raises(CheckpointError, match="does not fit"):
            load(saved(buffers | changes, other), gpt())
    short = {name: array for name, array in buffers.items() if name != "scales"}
    with pytest.raises(CheckpointError, match="does not fit"):
        load(saved(short, about), gpt())
    model.parameters.value(
        "dense1.bias"
        if "dense1.bias" in model.parameters.slots
        else next(iter(model.parameters.slots))
    )[...] = 1e6
    with pytest.raises(CheckpointError, match="not finite as float16"):
        store(model, about_for(model, "none", "float16"))
    model.parameters.value(about.names[0])[1, 2] = np.nan
    with pytest.raises(CheckpointError, match=f"{about.names[0]} is not finite"):
        store(model, about)


def test_a_file_for_inference_only(tmp_path: Path) -> None:
    model = gpt()
    about = about_for(model, "dynamic")
    path = tmp_path / "small.h5"
    buffers = store(model, about)
    ckpt.save_file(path, msgspec.structs.replace(META, quantized=about), buffers, init())
    found = ckpt.read(path, inference=True)
    assert found.meta.quantized == about
    for name, array in buffers.items():
        np.testing.assert_array_equal(found.buffers[name], array)
    with pytest.raises(CheckpointError, match="only predicts"):
        ckpt.read(path)
    content = bytearray(path.read_bytes())
    place = content.index(buffers["int8"][:64].tobytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="checksum"):
        ckpt.read(path, inference=True)
