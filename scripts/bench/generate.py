"""Texts with and without a cache, one and many at once: python scripts/bench/generate.py

A random GPT (--width, --depth, --heads, a context of 256 tokens), greedy, one thread. In each
round, one after the other:
  without    --tokens tokens, each by a pass over the whole context
  one        the same with the cache
  many       --texts texts at once, each of --tokens tokens
  transformers, and many  GPT-2 of Hugging Face with the same parameters and its cache, one text and
             a batch of --texts prompts of one length (a batch that nobody joins or leaves); where
             it is installed
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.generation import Request, Sampling
from mpidl.generation.engine import generate
from mpidl.models.transformer import gpt
from mpidl.nn import Model

LENGTH, VOCABULARY = 256, 512
PAIRS = (
    ("one", "without"),
    ("many", "one"),
    ("one", "transformers"),
    ("many", "transformers, many"),
)
Contenders = dict[str, tuple[Callable[[], None], int]]


def make(args: argparse.Namespace) -> Model:
    layers = gpt((LENGTH,), VOCABULARY, width=args.width, depth=args.depth, heads=args.heads)
    model = Model(layers, (LENGTH,), NumpyOps(1))
    values = model.parameters.values
    values[...] = 0.05 * np.random.default_rng(0).standard_normal(values.shape)
    return model


def peer(args: argparse.Namespace) -> Any:
    """GPT-2 of the same size; its parameters do not change its speed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    torch.set_num_threads(1)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=args.width,
        n_layer=args.depth,
        n_head=args.heads,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config).eval()

    def run(texts: int) -> None:
        given = torch.ones((texts, 8), dtype=torch.int64)
        model.generate(
            given,
            attention_mask=torch.ones_like(given),
            min_new_tokens=args.tokens,
            max_new_tokens=args.tokens,
            do_sample=False,
            pad_token_id=0,
        )

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    contenders = choose(args)
    rates = measure(contenders, args.tokens, args.rounds)
    for name, rate in rates.items():
        print(f"{name:<20} {rate:8.0f} tokens/s")
    for own, other in PAIRS:
        if other in rates:
            print(f"{own} / {other} {rates[own] / rates[other]:.2f}")


def choose(args: argparse.Namespace) -> Contenders:
    """What each contender does, and how many texts it writes."""
    model = make(args)
    greedy = Sampling(temperature=0)

    def without() -> None:
        x = np.zeros((1, LENGTH), np.int64)
        for place in range(7, 7 + args.tokens):
            y, _ = model.forward(x)
            if place + 1 < LENGTH:
                x[0, place + 1] = int(np.asarray(y)[0, place].argmax())

    def with_cache(texts: int) -> None:
        generate(model, [Request([k + 1] * 8, args.tokens, greedy) for k in range(texts)])

    contenders: Contenders = {
        "without": (without, 1),
        "one": (lambda: with_cache(1), 1),
        "many": (lambda: with_cache(args.texts), args.texts),
    }
    theirs = peer(args)
    if theirs is not None:
        contenders["transformers"] = (lambda: theirs(1), 1)
        contenders["transformers, many"] = (lambda: theirs(args.texts), args.texts)
    return contenders


def measure(contenders: Contenders, tokens: int, rounds: int) -> dict[str, float]:
    """Tokens per second, medians over rounds."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, (run, _) in contenders.items():
            begin = time.perf_counter()
            run()
            if round_:
                times[name].append(time.perf_counter() - begin)
    return {
        name: texts * tokens / statistics.median(times[name])
        for name, (_, texts) in contenders.items()
    }


if __name__ == "__main__":
    main()
