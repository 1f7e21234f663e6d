"""Fusion of neighboring layers: when it happens, and that it changes no gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.nn import Conv2D, Dense, Flatten, Layer, MaxPool2D, Model, ReLU, Sequential


def is_fused(layers: list[Layer]) -> bool:
    flags = [layer.relu_gradient_is_fused for layer in layers if isinstance(layer, Conv2D)]
    other = [layer.applies_relu_gradient for layer in layers if isinstance(layer, MaxPool2D)]
    assert flags == other
    return flags[0]


@pytest.mark.parametrize(
    ("conv", "pool", "fused"),
    [
        (lambda: Conv2D(3, relu=True), lambda: MaxPool2D(2), True),
        (lambda: Conv2D(3), lambda: MaxPool2D(2), False),
        (lambda: Conv2D(3, relu=True), lambda: MaxPool2D(3, stride=2), False),
        (lambda: Conv2D(3, relu=True), lambda: MaxPool2D(2, pad=1), False),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_pool_applies_the_gradient_of_a_relu_before_it(
    ops: Any, conv: Any, pool: Any, fused: bool, nested: bool, rng: np.random.Generator
) -> None:
    x, gradients = rng.standard_normal((3, 8, 6, 2)), []
    for apart in (False, True):
        layers = [conv(), pool()]
        inner: list[Layer] = [layers[0], Sequential([layers[1]])] if apart else layers
        model = Model(
            [*([Sequential(inner)] if nested else inner), Flatten(), Dense(2)],
            x.shape[1:],
            ops,
            dtype=np.float64,
        )
        assert is_fused(layers) == (fused and not apart)
        model.parameters.initialize(1)
        y, backward = model.forward(ops.to_device(x), train=True)
        backward(y * 0 + 1)
        gradients.append(ops.to_host(model.parameters.gradients).copy())
    np.testing.assert_array_equal(*gradients)


def test_layers_of_a_model_that_is_gone_are_not_fused_any_more(ops: Any) -> None:
    conv, pool = Conv2D(3, relu=True), MaxPool2D(2)
    model = Model([conv, pool], (4, 4, 1), ops)
    assert is_fused([conv, pool])
    del model
    Model([conv, ReLU(), pool], (4, 4, 1), ops)
    assert not is_fused([conv, pool])
