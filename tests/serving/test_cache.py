"""Texts of a rank whose keys and values are int8."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mpidl.generation import Request, Sampling
from mpidl.generation.decoder import CacheKind
from mpidl.generation.engine import generate
from mpidl.serving.messages import Start, Step
from mpidl.serving.texts import Texts
from tests.serving.test_texts import tiny


def test_texts_with_a_cache_of_int8() -> None:
    model, prompt = tiny(), tuple(b"abcdef")
    model.parameters.initialize(5)
    found: dict[str, list[int]] = {}
    kinds: tuple[CacheKind, ...] = ("float", "int8")
    for kind in kinds:
        writer = Texts(SimpleNamespace(model=model), 64, kind)
        step, found[kind] = Step((Start(1, prompt, (), 20, 0.9, 0, 1.0, 3),)), []
        ended: tuple[Any, ...] = ()
        while not ended:
            done = writer.step(step)
            found[kind] += [token for _, tokens in done.written for token in tokens]
            step, ended = Step(), done.ended
        (alone,) = generate(model, [Request(prompt, 20, Sampling(0.9, seed=3))], cache=kind)
        assert tuple(found[kind]) == alone.tokens and ended == ((1, "length"),)
