"""A small GPT learns a text, letter by letter: mpirun -n 2 python scripts/examples/gpt_text.py --steps 400

The text is by default the GNU General Public License, which every Debian system carries. Every rank draws its own pieces of
it; the last tenth is held out. Prints the held-out loss in nats a letter beside that of letter frequencies alone, and a sample.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import mpidl  # noqa: F401  (MPI before anything else)
from mpidl.backend import create_ops
from mpidl.comm.context import init
from mpidl.models import build_layers
from mpidl.nn import CrossEntropy, Model
from mpidl.optim import Adam, LearningRate, clip_by_global_norm
from mpidl.sync import AllReduce, StepScalars

TEXT = Path("/usr/share/common-licenses/GPL-3")


def draw(text: Any, rng: np.random.Generator, batch: int, context: int) -> tuple[Any, Any]:
    """ShardLayout of the text, and the same one letter later."""
    starts = rng.integers(0, len(text) - context, batch)
    pieces = text[starts[:, None] + np.arange(context + 1)[None, :]]
    return np.ascontiguousarray(pieces[:, :-1]), np.ascontiguousarray(pieces[:, 1:])


def write_on(model: Model, start: Any, letters: str, count: int, rng: np.random.Generator) -> str:
    """A sample: each letter drawn from what the model expects after those before it."""
    tokens = list(start)
    for _ in range(count):
        logits = np.asarray(
            model.ops.to_host(
                model.forward(model.ops.to_device(np.array([tokens[-len(start) :]])))[0]
            )
        )[0, -1]
        chances = np.exp(logits.astype(np.float64) - logits.max())
        tokens.append(int(rng.choice(len(chances), p=chances / chances.sum())))
    return "".join(letters[token] for token in tokens[len(start) :])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16, help="pieces a step, over all ranks")
    parser.add_argument("--context", type=int, default=64, help="letters of a piece")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    context = init()
    raw = args.text.read_text(errors="replace")
    letters = "".join(sorted(set(raw)))
    text = np.array([letters.index(letter) for letter in raw])
    trained, held_out = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    ops = create_ops("auto", context.local_rank, context.threads)
    model = Model(
        build_layers("gpt", (args.context,), len(letters), {"size": "tiny"}), (args.context,), ops
    )
    model.parameters.initialize(0)
    loss, optimizer, strategy = (
        CrossEntropy(ops),
        Adam(model.parameters, ops),
        AllReduce(model.parameters, context),
    )
    rate = LearningRate(3e-3, args.steps, "cosine", warmup_steps=args.steps // 10)
    strategy.start()
    rng, own = np.random.default_rng(context.rank), max(1, args.batch // context.size)
    for step in range(args.steps):
        x, y = draw(trained, rng, own, args.context)
        logits, backward = model.forward(ops.to_device(x), train=True)
        result = loss(logits, ops.to_device(y), len(y) * context.size)
        backward(result.gradient, strategy.on_gradients_ready)

        def update(step: int = step) -> None:
            clip_by_global_norm(model.parameters, ops, 1.0)
            optimizer.step(rate.at(step))

        sums = strategy.step(StepScalars(loss=result.total), update)
        if context.is_root and step % 50 == 49:
            print(
                f"step {step + 1}: {sums.loss / (len(y) * context.size):.3f} nats a letter",
                flush=True,
            )
    x, y = draw(held_out, np.random.default_rng(1), 64, args.context)
    test = loss(model.forward(ops.to_device(x))[0], ops.to_device(y), len(y)).total / len(y)
    counts = np.bincount(trained, minlength=len(letters)) + 1
    plain = float(-np.log(counts[y] / counts.sum()).mean())
    if context.is_root:
        sample = write_on(model, held_out[: args.context], letters, 120, np.random.default_rng(2))
        found = {
            "held_out_nats": test,
            "letter_frequencies_nats": plain,
            "ranks": context.size,
            "sample": sample,
        }
        print(
            json.dumps(found)
            if args.json
            else f"held out: {test:.3f}, by frequencies alone {plain:.3f}\n{sample}"
        )


if __name__ == "__main__":
    main()
