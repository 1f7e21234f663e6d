"""Which token is chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.errors import ConfigError
from mpidl.generation import Sampling

LOGITS = np.log(np.array([0.05, 0.4, 0.15, 0.3, 0.1], np.float32))


def counts(draws: int = 4000, **options: Any) -> np.ndarray:
    found = [Sampling(seed=seed, **options).choose(LOGITS, 3) for seed in range(draws)]
    return np.bincount(found, minlength=5) / draws


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [0.05, 0.4, 0.15, 0.3, 0.1]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_k": 99}, [0.05, 0.4, 0.15, 0.3, 0.1]),
        ({"top_p": 0.71}, [0, 8 / 17, 3 / 17, 6 / 17, 0]),
        ({"top_p": 0.01}, [0, 1, 0, 0, 0]),
        ({"temperature": 0.5}, np.square([0.05, 0.4, 0.15, 0.3, 0.1]) / 0.285),
        ({"temperature": 0.0}, [0, 1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [0, 8 / 14, 0, 6 / 14, 0]),
    ],
)
def test_tokens_have_their_probabilities(options: dict[str, Any], wanted: list[float]) -> None:
    np.testing.assert_allclose(counts(**options), wanted, atol=0.035)


def test_a_seed_and_a_place_decide() -> None:
    many = [[Sampling(seed=s).choose(LOGITS, n) for n in range(40)] for s in (1, 1, 2)]
    assert many[0] == many[1] != many[2] and len(set(many[0])) > 2


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0},
     {"top_p": 1.5}, {"seed": -1}, {"seed": 1 << 64}],
)  # fmt: skip
def test_what_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Sampling(**options)


def test_large_logits() -> None:
    logits = np.array([1e4, -1e4, 1e4 - 1], np.float32)
    assert {Sampling(seed=s).choose(logits, 0) for s in range(60)} == {0, 2}
