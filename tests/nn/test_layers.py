"""Gradients of all layers against central differences in float64, and special behavior of some."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mpidl.nn.layers
from mpidl.errors import ConfigError, ShapeError
from mpidl.nn import (
    GRU,
    LSTM,
    Activation,
    AvgPool2D,
    BatchNorm,
    Concat,
    Conv1D,
    Conv2D,
    Conv3D,
    ConvTranspose2D,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    Identity,
    Layer,
    LayerNorm,
    MaxPool2D,
    Model,
    PositionalEmbedding,
    Recompute,
    ReLU,
    Reshape,
    Residual,
    RMSNorm,
    SelfAttention,
    Sequential,
    Softmax,
    SpectralConv,
)
from mpidl.testing import GradientError, check_gradients

Make = Callable[[], Layer | list[Layer]]
LAYERS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "dense gelu": (lambda: Dense(5, activation="gelu"), (7,)),
    "dense on sequences": (lambda: Dense(5, relu=True), (4, 7)),
    "dense without bias": (lambda: Dense(5, bias=False, activation="silu"), (7,)),
    **{
        f"act {name}": (lambda name=name: [Dense(6), Activation(name)], (5,))  # type: ignore[misc]
        for name in ("relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
    },
    "softmax": (lambda: Softmax(), (3, 5)),
    "log-softmax": (lambda: Softmax(log=True), (5,)),
    "dropout": (lambda: [Dense(9), Dropout(0.4), Dense(3)], (5,)),
    "relu": (lambda: [Dense(6), ReLU(), Dense(3)], (5,)),
    "flatten": (lambda: [Flatten(), Dense(3)], (2, 3)),
    "positional embedding": (lambda: PositionalEmbedding(), (4, 3)),
    "conv 2d groups and dilation": (
        lambda: Conv2D(4, (3, 2), stride=(2, 1), pad=(1, 0), dilation=(1, 2), groups=2),
        (7, 8, 6),
    ),
    "conv 2d without bias": (lambda: Conv2D(4, bias=False, relu=True), (5, 6, 3)),
    "conv 2d 1x1": (lambda: Conv2D(4, 1), (5, 6, 3)),
    "conv 2d 1x1 stride 2": (lambda: Conv2D(4, 1, stride=2, pad=0, bias=False), (6, 5, 3)),
    "conv 2d winograd": (lambda: Conv2D(16, relu=True), (6, 9, 16)),
    "conv 2d stride 2": (lambda: Conv2D(5, 3, stride=2, pad=1), (7, 8, 3)),
    "conv 1d": (lambda: Conv1D(4, 5, stride=2, relu=True), (11, 3)),
    "conv 3d": (lambda: Conv3D(3, (2, 3, 2), pad=(1, 1, 0)), (4, 5, 4, 2)),
    "transposed": (lambda: ConvTranspose2D(3, 3, stride=2, pad=1, relu=True), (4, 5, 2)),
    "max pool": (lambda: MaxPool2D(3, stride=2, pad=1), (7, 8, 3)),
    "avg pool": (lambda: AvgPool2D(3, stride=2, pad=1), (7, 8, 3)),
    "global average": (lambda: GlobalAvgPool(), (4, 5, 3)),
    "batch norm": (lambda: BatchNorm(), (4, 3, 5)),
    "batch norm relu": (lambda: [Conv2D(4), BatchNorm(relu=True)], (4, 3, 5)),
    "layer norm": (lambda: LayerNorm(), (4, 7)),
    "rms norm": (lambda: RMSNorm(), (4, 7)),
    "group norm": (lambda: GroupNorm(3, relu=True), (4, 3, 6)),
    "attention": (lambda: SelfAttention(2), (5, 6)),
    "causal attention": (lambda: SelfAttention(3, causal=True), (5, 6)),
    "lstm": (lambda: LSTM(4), (5, 3)),
    "lstm last": (lambda: LSTM(4, sequences=False), (5, 3)),
    "gru": (lambda: GRU(4), (5, 3)),
    "gru last": (lambda: GRU(4, sequences=False), (5, 3)),
    "spectral 1d": (lambda: SpectralConv(4, 3), (8, 3)),
    "spectral 1d all modes": (lambda: SpectralConv(2, 4), (8, 3)),
    "spectral 2d": (lambda: SpectralConv(3, 2), (6, 7, 2)),
    "residual": (lambda: Residual([Dense(6, relu=True), Dense(7)]), (7,)),
    "residual shortcut": (
        lambda: Residual([Dense(6, relu=True), Dense(4)], Dense(4), relu=True),
        (7,),
    ),
    "concat": (
        lambda: Concat([Dense(3), Identity(), Sequential([Dense(4, relu=True), Dense(2)])]),
        (5,),
    ),
    "recompute": (
        lambda: [
            Recompute([Dense(6, relu=True), Dense(5)]),
            Recompute([Dense(6, relu=True), Dense(5)]),
        ],
        (5,),
    ),
    "recompute dropout": (
        lambda: [
            Recompute(Residual([Dropout(0.5), Dense(5)])),
            Recompute(Residual([Dropout(0.5), Dense(5)])),
        ],
        (5,),
    ),
    "recompute norm": (lambda: Recompute([BatchNorm(), Dense(5)]), (5,)),
    "reshape": (lambda: [Reshape(2, 3), LSTM(2)], (6,)),
    "nested": (
        lambda: Sequential([Residual(Sequential([Conv2D(3), MaxPool2D(1)])), GlobalAvgPool()]),
        (4, 4, 3),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(ops: Any, name: str) -> None:
    make, shape = LAYERS[name]
    check_gradients(make(), shape, ops=ops, batch=4)


def test_every_layer_is_exported_and_checked() -> None:
    """`mpidl.nn.__all__`, the table above and the classes that are defined have the same layers."""
    defined = set()
    for module in pkgutil.iter_modules(mpidl.nn.layers.__path__, "mpidl.nn.layers."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, Layer) and hasattr(kind, "kind"):
                defined.add(kind)
    exported = [getattr(mpidl.nn, name) for name in mpidl.nn.__all__]
    layers = {kind for kind in exported if inspect.isclass(kind) and issubclass(kind, Layer)}
    checked: set[type[Layer]] = {Embedding}  # its inputs are whole numbers: below
    for make, _ in LAYERS.values():
        made = make()
        for layer in [made] if isinstance(made, Layer) else made:
            checked |= {type(inner) for inner in layer.walk()}
    assert layers - {Layer} == defined == checked


def test_kinds_are_the_names_of_the_classes() -> None:
    """Parameter names in checkpoints: one word for one thing."""
    exported = [getattr(mpidl.nn, name) for name in mpidl.nn.__all__]
    kinds = [kind for kind in exported if inspect.isclass(kind) and issubclass(kind, Layer)]
    for kind in kinds:
        if kind is not Layer:
            assert kind.kind.replace("_", "") == kind.__name__.lower()


def test_a_layer_class_without_a_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Scale does not define its kind(?s:.*)kind = "):

        class Scale(Layer):
            pass

    class Base(Layer, base=True):
        pass

    assert not hasattr(Base, "kind")


def test_gradients_of_embeddings(ops: Any, rng: np.random.Generator) -> None:
    layers = [Embedding(9, 4, positions=True), LayerNorm(), Dense(3)]
    check_gradients(layers, (5,), ops=ops, inputs=rng.integers(0, 9, (3, 5)))


def test_a_wrong_gradient_is_found() -> None:
    class Wrong(Dense):
        def forward(self, x: Any, *, train: bool) -> Any:
            y, back = super().forward(x, train=train)
            return y, lambda dy: back(2 * dy)

    with pytest.raises(GradientError, match=r"dense1\.weight"):
        check_gradients(Wrong(3), (4,))


def make_model(layers: list[Layer], shape: tuple[int, ...], ops: Any, **kwargs: Any) -> Model:
    model = Model(layers, shape, ops, **kwargs)
    model.parameters.initialize(0)
    return model


def test_batch_norm_follows_the_statistics(ops: Any, rng: np.random.Generator) -> None:
    model = make_model([BatchNorm(momentum=0.5)], (3,), ops, dtype=np.float64)
    x = rng.standard_normal((50, 3)) * 3 + 5
    y, _ = model.forward(ops.to_device(x), train=True)
    np.testing.assert_allclose(ops.to_host(y).mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(ops.to_host(y).std(axis=0), 1, atol=1e-5)
    running = ops.to_host(model.parameters.value("batch_norm1.running_var"))
    np.testing.assert_allclose(running, 0.5 + 0.5 * x.var(axis=0, ddof=1))
    for _ in range(60):
        model.forward(ops.to_device(x), train=True)
    used, _ = model.forward(ops.to_device(x[:1]))
    wanted = (x[:1] - x.mean(axis=0)) / np.sqrt(x.var(axis=0, ddof=1) + 1e-5)
    np.testing.assert_allclose(ops.to_host(used), wanted, rtol=1e-9)


def test_recomputing_keeps_less_and_changes_nothing(ops: Any, rng: np.random.Generator) -> None:
    def blocks(wrap: Any) -> list[Layer]:
        return [
            wrap(Residual([LayerNorm(), Dense(64, activation="gelu"), Dropout(0.1), Dense(16)]))
            for _ in range(6)
        ]

    results, held = [], []
    x = rng.standard_normal((32, 16))
    for wrap in (lambda layer: layer, Recompute):
        model = make_model(blocks(wrap), (16,), ops, dtype=np.float64)
        numbers = [layer for layer in model.walk() if isinstance(layer, Dropout)]
        for number, layer in enumerate(numbers):
            layer.number = number  # the same masks in both
        y, back = model.forward(ops.to_device(x), train=True)
        back(ops.to_device(np.ones((32, 16))), None)
        results.append((ops.to_host(y).copy(), ops.to_host(model.parameters.gradients).copy()))
        spaces = {id(layer.workspace): layer.workspace for layer in model.walk()}
        held.append(
            sum(array.nbytes for space in spaces.values() for array in space._held.values())
        )
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert held[1] < 0.5 * held[0]


def test_composites_that_do_not_fit_say_where() -> None:
    from mpidl.backend.numpy_ops import NumpyOps

    with pytest.raises(ShapeError, match=r"\(4,\).*\(7,\)"):
        Model([Residual(Dense(4))], (7,), NumpyOps())
    with pytest.raises(ShapeError, match=r"sequential1\.self_attention1"):
        Model([Sequential([SelfAttention(4)])], (3, 6), NumpyOps())
    with pytest.raises(ShapeError, match="group_norm1"):
        Model([GroupNorm(4)], (3, 6), NumpyOps())


def test_a_steady_step_allocates_next_to_nothing(rng: np.random.Generator) -> None:
    """Less than 1 % of the bytes that a step works on."""
    import tracemalloc

    from mpidl.backend.numpy_ops import NumpyOps

    ops = NumpyOps()
    model = make_model(
        [
            Conv2D(16, relu=True),
            MaxPool2D(2),
            Reshape(64, 16),
            Dense(32, activation="gelu"),
            LayerNorm(),
        ],
        (16, 16, 3),
        ops,
    )
    x, dy = (
        rng.standard_normal((64, 16, 16, 3)).astype(np.float32),
        np.ones((64, 64, 32), np.float32),
    )

    def step() -> None:
        _, back = model.forward(x, train=True)
        back(dy.copy(), None)

    step()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    step()
    peak = tracemalloc.get_traced_memory()[1] - before - dy.nbytes
    tracemalloc.stop()
    worked = sum(array.nbytes for layer in model.walk() for array in layer.workspace._held.values())
    assert peak < 0.01 * worked, (peak, worked)
