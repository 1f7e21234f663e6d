"""Texts of models and caches of int8: close to those of float32, and as repeatable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpidl.generation import Engine, Request, Sampling
from mpidl.generation.decoder import Cache, CacheKind
from mpidl.generation.engine import generate
from mpidl.generation.measure import perplexity, tokens_per_second
from mpidl.inference.quantized import load, matrices, store
from mpidl.nn import Model
from mpidl.optim import RunState
from mpidl.train import checkpoint as ckpt
from tests.generation.test_engine import LENGTH, MODEL, VOCABULARY, model, prompts


def int8_model() -> Model:
    """MODEL with int8 products, by way of its file."""
    names = tuple(name for _, name in matrices(MODEL))
    about = ckpt.Quantized("dynamic", "float32", names, folded=False, pruned=0.0)
    meta = ckpt.Meta(0, 0, 0, 0, {}, {}, {}, {}, None, quantized=about)
    made = model()
    load(ckpt.Checkpoint(Path("none"), meta, store(MODEL, about), RunState()), made)
    return made


SMALL = int8_model()
WINDOWS = np.random.default_rng(2).integers(0, VOCABULARY, (6, LENGTH + 1))


def by_whole_passes(of: Model) -> float:
    logits = np.asarray(of.forward(WINDOWS[:, :-1])[0], np.float64)
    norms = np.log(np.exp(logits).sum(axis=-1))
    taken = np.take_along_axis(logits, WINDOWS[:, 1:, None], axis=-1)[..., 0]
    return float(np.exp((norms - taken).mean()))


def test_perplexity_is_that_of_whole_passes() -> None:
    assert perplexity(MODEL, WINDOWS) == pytest.approx(by_whole_passes(MODEL), rel=1e-5)
    assert perplexity(SMALL, WINDOWS) == pytest.approx(by_whole_passes(SMALL), rel=1e-3)
    assert perplexity(SMALL, WINDOWS) != perplexity(MODEL, WINDOWS)


@pytest.mark.parametrize(("of", "cache"), [(SMALL, "float"), (MODEL, "int8"), (SMALL, "int8")])
def test_perplexity_hardly_changes(of: Model, cache: CacheKind) -> None:
    exact, found = perplexity(MODEL, WINDOWS), perplexity(of, WINDOWS, cache)
    assert found != exact and found == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("of", [MODEL, SMALL])
def test_a_text_depends_on_nothing_beside_it(of: Model) -> None:
    requests = [
        Request(prompt, 25, Sampling(seed=seed, top_p=0.95))
        for seed, prompt in enumerate(prompts(18))
    ]
    together = generate(of, requests, cache="int8")
    narrow = generate(of, requests, blocks=8, cache="int8")
    assert narrow == together
    for index in (0, 7, 17):
        (alone,) = generate(of, [requests[index]], cache="int8")
        assert alone.tokens == together[index].tokens


def test_a_cache_of_int8_is_small() -> None:
    sizes = [Cache(MODEL, 9, 16, kind).nbytes for kind in ("float", "int8")]
    assert sizes[1] == sizes[0] / 4 + sizes[0] / 8  # heads of 8 numbers have a step of 4 bytes


def test_a_broken_number_spoils_its_own_text_only() -> None:
    spoiled = model()
    spoiled.parameters.value("embedding1.weight")[3] = np.nan
    healthy = Request([1, 2], 3, Sampling(temperature=0))
    engine = Engine(spoiled, cache="int8")
    for request in (Request([3, 3], 3, Sampling(temperature=0)), healthy):
        engine.submit(request)
    texts = {each.number: each.tokens for each in engine.run()}
    assert texts[1] == generate(spoiled, [healthy], cache="int8")[0].tokens


def test_speed_counts_all_tokens() -> None:
    rates = tokens_per_second([(MODEL, "float"), (SMALL, "int8")], [1, 2])
    assert len(rates) == 2 and min(rates) > 1
