"""A small GPT learns a text letter by letter.

    mpirun -n 2 python scripts/examples/gpt_text.py --steps 400

The text is by default the GNU General Public License, which every Debian system has. Every rank
draws its own pieces of it; the last tenth is held out. Prints the held-out loss in nats a letter
compared with that of letter frequencies alone, and a sample.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import mpidl  # noqa: F401  (MPI before anything else)
from mpidl.backend import create_ops
from mpidl.comm.context import Context, init
from mpidl.models import build_layers
from mpidl.nn import CrossEntropy, Model
from mpidl.optim import Adam, LearningRate
from mpidl.sync import AllReduce
from mpidl.train.engine import StepBatch, StepOptions, TrainingStep

TEXT = Path("/usr/share/common-licenses/GPL-3")


def draw(text: Any, rng: np.random.Generator, batch: int, length: int) -> tuple[Any, Any]:
    """Pieces of the text (batch, length), and the same one letter later."""
    starts = rng.integers(0, len(text) - length, batch)
    pieces = text[starts[:, None] + np.arange(length + 1)[None, :]]
    return np.ascontiguousarray(pieces[:, :-1]), np.ascontiguousarray(pieces[:, 1:])


def batches(text: Any, model: Model, context: Context, batch: int) -> Iterator[StepBatch]:
    """Random pieces, without an end; `batch`: of all ranks."""
    rng = np.random.default_rng(context.rank)
    own = max(1, batch // context.size)
    to_device = model.ops.to_device
    while True:
        x, y = draw(text, rng, own, model.input_shape[0])
        yield StepBatch.whole(to_device(x), to_device(y), context.size)


def train(model: Model, text: Any, context: Context, steps: int, batch: int) -> None:
    strategy = AllReduce(model.parameters, context)
    step = TrainingStep(
        model,
        CrossEntropy(model.ops),
        strategy,
        Adam(model.parameters, model.ops),
        context,
        StepOptions(clip_norm=1.0),
    )
    strategy.start()
    rate = LearningRate(3e-3, steps, "cosine", warmup_steps=steps // 10)
    feed = batches(text, model, context, batch)
    for number in range(steps):
        sums = step.run(feed, rate.at(number), step=number)
        if context.is_root and number % 50 == 49:
            print(f"step {number + 1}: {sums.loss / sums.count:.3f} nats a letter", flush=True)


def sample(model: Model, start: Any, letters: str, count: int, rng: np.random.Generator) -> str:
    """A text: each letter drawn from what the model predicts after those before it."""
    tokens = list(start)
    for _ in range(count):
        window = model.ops.to_device(np.array([tokens[-len(start) :]]))
        logits = np.asarray(model.ops.to_host(model.forward(window)[0]))[0, -1]
        weights = np.exp(logits.astype(np.float64) - logits.max())
        tokens.append(int(rng.choice(len(weights), p=weights / weights.sum())))
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
    trained, held_out = np.split(text, [len(text) * 9 // 10])
    layers = build_layers("gpt", (args.context,), len(letters), {"size": "tiny"})
    ops = create_ops("auto", context.local_rank, context.threads)
    model = Model(layers, (args.context,), ops)
    model.parameters.initialize(0)
    train(model, trained, context, args.steps, args.batch)
    if not context.is_root:
        return
    x, y = draw(held_out, np.random.default_rng(1), 64, args.context)
    outputs = model.forward(ops.to_device(x))[0]
    loss = CrossEntropy(ops)(outputs, ops.to_device(y), len(x)).total / len(x)
    counts = np.bincount(trained, minlength=len(letters)) + 1
    frequencies = float(-np.log(counts[y] / counts.sum()).mean())
    written = sample(model, held_out[: args.context], letters, 120, np.random.default_rng(2))
    found = {
        "held_out_nats": loss,
        "letter_frequencies_nats": frequencies,
        "ranks": context.size,
        "sample": written,
    }
    text = f"held out: {loss:.3f}, by frequencies alone {frequencies:.3f}\n{written}"
    print(json.dumps(found) if args.json else text)


if __name__ == "__main__":
    main()
