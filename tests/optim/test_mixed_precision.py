"""Training with 16-bit activations: master weights, loss scaling, steps left out on overflow."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.errors import BackendError
from mpidl.models import build_layers
from mpidl.nn import CrossEntropy, Dense, Model
from mpidl.optim import Adam, LossScaler

MODELS: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("cnn", (8, 8, 1), {"size": "tiny"}),
    ("gpt", (12,), {"width": 32, "depth": 2, "heads": 2}),
    ("lstm", (6,), {"units": 16, "depth": 1, "embedding": 8}),
    ("resnet", (8, 8, 3), {"size": "tiny"}),
    ("unet", (8, 8, 3), {"channels": (8, 16), "groups": 4}),
    ("fno", (16, 2), {"size": "tiny"}),
]


def losses(ops: Any, which: int, compute: Any, steps: int = 6) -> list[float]:
    name, shape, options = MODELS[which]
    rng = np.random.default_rng(5)
    model = Model(build_layers(name, shape, 10, options), shape, ops, compute_dtype=compute)
    model.parameters.initialize(1)
    tokens = name in ("gpt", "lstm")
    x = ops.to_device(
        rng.integers(0, 10, (8, *shape))
        if tokens
        else rng.standard_normal((8, *shape)).astype(compute)
    )
    y = ops.to_device(rng.integers(0, 10, (8, *model.output_shape[:-1])))
    loss, optimizer = CrossEntropy(ops), Adam(model.parameters, ops)
    scaler = LossScaler(model.parameters, dynamic=compute == np.float16)
    found = []
    for _ in range(steps):
        logits, backward = model.forward(x, train=True)
        assert logits.dtype == compute
        loss.gradient_scale = scaler.scale
        result = loss(logits, y, len(y))
        backward(result.gradient, None)
        scaler.unscale(model.parameters.gradients)
        found.append(result.total / len(y))
        if scaler.accept():
            optimizer.step(0.003)
    assert model.parameters.values.dtype == np.float32
    return found


@pytest.mark.parametrize("compute", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("which", range(len(MODELS)), ids=[name for name, _, _ in MODELS])
def test_16_bits_learn_as_32_do(gpu_ops: Any, which: int, compute: Any) -> None:
    exact, rounded = losses(gpu_ops, which, np.float32), losses(gpu_ops, which, compute)
    assert exact[-1] < exact[0]
    np.testing.assert_allclose(
        rounded, exact, rtol=0.01 if compute == np.float16 else 0.05, atol=0.02
    )


def test_an_overflow_leaves_the_step_out_and_halves_the_scale(gpu_ops: Any) -> None:
    model = Model([Dense(4)], (3,), gpu_ops, compute_dtype=np.float16)
    scaler = LossScaler(model.parameters, dynamic=True, scale=1024.0, interval=2)
    model.parameters.gradients[...] = 1
    model.parameters.gradients[3] = np.inf
    assert not scaler.accept() and scaler.scale == 512
    model.parameters.gradients[...] = 512
    scaler.unscale(model.parameters.gradients[:5])
    assert float(model.parameters.gradients[4]) == 1 and float(model.parameters.gradients[5]) == 512
    assert scaler.accept() and scaler.scale == 512
    assert scaler.accept() and scaler.scale == 1024  # after two good steps


def test_a_scale_is_resumed_where_it_was(gpu_ops: Any) -> None:
    """Also how many good steps there were since it last changed."""
    model = Model([Dense(4)], (3,), gpu_ops, compute_dtype=np.float16)
    scalers = [
        LossScaler(model.parameters, dynamic=True, scale=1024.0, interval=3) for _ in range(2)
    ]
    model.parameters.gradients[...] = 1
    for _ in range(2):
        assert scalers[0].accept()
    scalers[1].load_state(scalers[0].state())
    for scaler in scalers:
        assert scaler.accept() and scaler.scale == 2048
    fixed = LossScaler(model.parameters, dynamic=False)
    assert not list(fixed.state().names())


def test_small_gradients_survive_only_with_a_scale(gpu_ops: Any) -> None:
    """A gradient of 1e-8 is below the smallest float16; with a scale of 2^16 it is not."""
    model = Model([Dense(3), Dense(2)], (4,), gpu_ops, compute_dtype=np.float16)
    model.parameters.initialize(0)
    x = gpu_ops.to_device(np.ones((1, 4), np.float16))
    found = []
    for scale in (1.0, 65536.0):
        _, backward = model.forward(x, train=True)
        backward(gpu_ops.to_device(np.full((1, 2), 1e-8 * scale).astype(np.float16)), None)
        found.append(
            np.abs(gpu_ops.to_host(model.parameters.gradient("dense2.bias")) / scale).max()
        )
    assert found[0] == 0 and found[1] == pytest.approx(1e-8, rel=1e-3)


def test_16_bits_on_a_cpu_are_refused() -> None:
    with pytest.raises(
        BackendError, match=r"cannot compute a float32 model in float16(?s:.)*needs a GPU"
    ):
        Model([Dense(3)], (4,), NumpyOps(), compute_dtype=np.float16)


def test_a_loss_scale_means_nothing_without_16_bit_numbers() -> None:
    model = Model([Dense(3)], (4,), NumpyOps())
    saved = LossScaler(model.parameters, dynamic=True).state()
    plain = LossScaler(model.parameters, dynamic=False)
    plain.load_state(saved)
    assert plain.scale == 1 and set(saved.names()) == {"scale", "good"}  # not used, which is said
