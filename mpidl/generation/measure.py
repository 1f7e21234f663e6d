"""What a smaller model or cache costs and brings: perplexity and speed of texts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.generation.decoder import ROWS, Cache, CacheKind, Decoder, Rows, empty_rows
from mpidl.generation.engine import BLOCK, Request, generate
from mpidl.generation.sampling import Sampling
from mpidl.nn import Model

TEXTS, TOKENS, ROUNDS = 8, 64, 5  # of the measurement of speed
Contender = tuple[Model, CacheKind]


def perplexity(model: Model, windows: NDArray[Any], cache: CacheKind = "float") -> float:
    """Perplexity of the next tokens, computed as when a text is written, with a cache.

    Args:
        model: A causal language model.
        windows: (n, t + 1) tokens; t at most the context of the model.
        cache: See `Cache`.
    """
    length = windows.shape[1] - 1
    columns = -(-length // BLOCK)
    decoder = Decoder(model, Cache(model, columns, BLOCK, cache))
    total = 0.0
    for window in windows:
        for start in range(0, length, ROWS):
            at = np.arange(start, min(start + ROWS, length))
            host = empty_rows(columns, columns * BLOCK)
            host["table"][0] = np.arange(columns)
            host["tokens"][: len(at)] = window[at]
            host["positions"][: len(at)] = host["slots"][: len(at)] = at
            host["visible"][: len(at)] = at + 1
            rows = Rows(**{name: decoder.ops.to_device(array) for name, array in host.items()})
            logits = decoder.logits(rows)[: len(at)].astype(np.float64)
            top = logits.max(axis=1, keepdims=True)
            norms = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
            total += float((norms - logits[np.arange(len(at)), window[at + 1]]).sum())
    return math.exp(min(total / max(windows.shape[0] * length, 1), 700))


def tokens_per_second(contenders: Sequence[Contender], prompt: Sequence[int]) -> list[float]:
    """Tokens a second of several greedy texts at once, medians of rounds that take turns.

    Args:
        contenders: Models, and how their keys and values are kept.
        prompt: Tokens that the texts begin with, a few.
    """
    seconds: list[list[float]] = [[] for _ in contenders]
    greedy = Sampling(temperature=0)
    counts = [1] * len(contenders)
    for round_ in range(ROUNDS + 1):
        for index, (model, cache) in enumerate(contenders):
            requests = [Request(prompt, TOKENS, greedy)] * TEXTS
            start = time.perf_counter()
            done = generate(model, requests, cache=cache)
            if round_:  # the first one warms up
                seconds[index].append(time.perf_counter() - start)
            counts[index] = sum(len(each.tokens) for each in done)
    return [count / median(own) for count, own in zip(counts, seconds, strict=True)]
