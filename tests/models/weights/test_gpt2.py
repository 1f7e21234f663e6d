"""GPT-2 of Hugging Face: the same weights give the same outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpidl.models.weights import load_weights
from tests.models.weights.test_safetensors import make


@pytest.mark.peer
@pytest.mark.parametrize("recompute", [False, True])
def test_state_dicts_of_gpt2(tmp_path: Path, recompute: bool, rng: np.random.Generator) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 32, "vocab_size": 50}
    module = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    )
    module.save_pretrained(tmp_path)
    model = make("gpt", (20,), 50, width=48, depth=3, heads=4, recompute=recompute)
    load_weights(model, tmp_path / "model.safetensors")
    tokens = rng.integers(0, 50, (3, 20))
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(model.forward(tokens)[0], wanted, rtol=1e-4, atol=1e-4)
