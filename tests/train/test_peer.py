"""A whole CNN step against PyTorch: loss, gradients and updated parameters."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.models import build_layers
from mpidl.nn import CrossEntropy, Model
from mpidl.optim import SGD

pytestmark = pytest.mark.peer


@pytest.mark.parametrize("name", ["cnn", "mlp"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_whole_step_equals_pytorch(name: str, nesterov: bool, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts" / "bench"))
    from torch_models import parameters_like_ours, twin

    ops, shape = NumpyOps(), (28, 28, 1)
    model = Model(build_layers(name, shape, 10, {}), shape, ops)
    model.parameters.initialize(3)
    module = twin(model)
    ours = SGD(model.parameters, ops, momentum=0.9, weight_decay=1e-3, nesterov=nesterov)
    theirs = torch.optim.SGD(module.parameters(), 0.05, 0.9, weight_decay=1e-3, nesterov=nesterov)
    loss = CrossEntropy(ops)
    for _ in range(3):
        x, y = rng.standard_normal((32, *shape)).astype(np.float32), rng.integers(0, 10, 32)
        logits, backward = model.forward(x, train=True)
        result = loss(logits, y, 32)
        backward(result.gradient, None)
        theirs.zero_grad()
        reference = torch.nn.functional.cross_entropy(
            module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())), torch.from_numpy(y)
        )
        reference.backward()
        assert result.total / 32 == pytest.approx(float(reference.detach()), rel=1e-4)
        gradients = parameters_like_ours(module, model, gradients=True)
        assert (
            np.abs(model.parameters.gradients - gradients).max() <= 1e-4 * np.abs(gradients).max()
        )
        ours.step(0.05)
        theirs.step()
        wanted = parameters_like_ours(module, model)
        assert np.abs(model.parameters.values - wanted).max() <= 1e-4 * np.abs(wanted).max()
