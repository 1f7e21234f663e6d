"""Write texts with a language model. Under mpirun the ranks share the prompts.

The same text is written for a seed, whatever the number of ranks and of other prompts.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl.cli.arguments import add_backend, add_checkpoint

if TYPE_CHECKING:
    from mpidl.generation import Engine, Request
    from mpidl.generation.text import Coder

NAME = "generate"
HELP = "texts from a language model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_checkpoint(parser)
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", help="may be given several times")
    prompts.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt a line")
    parser.add_argument("--tokenizer", type=Path, help="of the data (default: tokens are bytes)")
    numbers = (
        ("--max-tokens", int, 200, "tokens to write"),
        ("--temperature", float, 1.0, "divides the logits; 0: always the most probable token"),
        ("--top-k", int, 0, "draw from so many tokens; 0: from all"),
        ("--top-p", float, 1.0, "draw from the most probable tokens of this probability"),
        ("--seed", int, 0, "of the first text; each further one has the next"),
        ("--texts", int, 1, "texts for each prompt"),
    )
    for name, kind, default, text in numbers:
        parser.add_argument(name, type=kind, default=default, help=f"{text} (default: {default})")
    parser.add_argument(
        "--stop", action="append", default=[], help="a text of one token that ends a text"
    )
    parser.add_argument(
        "--cache",
        default="float",
        choices=("float", "int8"),
        help="how keys and values are kept; int8: in a quarter of the memory (default: float)",
    )
    add_backend(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Generate. Collective."""
    from mpidl.comm.context import init
    from mpidl.errors import ConfigError
    from mpidl.generation import Engine
    from mpidl.generation.text import Coder
    from mpidl.inference.predict import Predictor

    context = init()
    predictor = Predictor(args.checkpoint, context, backend=args.backend)
    with context.fail_together("reading the prompts"):
        if not predictor.task.gives_tokens:
            raise ConfigError(
                f"the task {predictor.spec.task!r} writes no texts",
                where=str(args.checkpoint),
                remedy="name a run of a language model, or use 'mpidl predict'",
            )
        coder = Coder(predictor.spec.target.classes or 0, args.tokenizer)
        prompts = _prompts(args)
        requests = _requests(args, coder, prompts)
        engine = Engine(predictor.model, cache=args.cache)
        own = range(context.rank, len(requests), context.size)
        for number in own:
            engine.submit(requests[number])
    texts: dict[int, str] = {}
    start, count = time.perf_counter(), 0
    with context.fail_together("generating"):
        shown = context.is_root and len(requests) == 1 and not args.json
        for number, tokens in _work(engine, coder, prompts[0] if shown else None):
            texts[own[number]] = coder.decode(tokens)
            count += len(tokens)
    own_part = texts, count, time.perf_counter() - start
    parts = context.allgather_object(own_part, tuple[dict[int, str], int, float])
    found = {n: text for part, *_ in parts for n, text in part.items()}
    rate = sum(part[1] for part in parts) / max(part[2] for part in parts)
    results = [
        {"prompt": prompts[n // args.texts], "text": found[n], "seed": args.seed + n}
        for n in sorted(found)
    ]
    if context.is_root and not args.json and not shown:
        for each in results:
            print(f"--- seed {each['seed']}\n{each['prompt']}{each['text']}")
    if context.is_root:
        print(f"{rate:,.0f} tokens/s", file=sys.stderr)
    return {"texts": results, "tokens_per_second": rate}


def _prompts(args: argparse.Namespace) -> list[str]:
    from mpidl.errors import ConfigError
    from mpidl.files import reading

    if args.prompts is None:
        return list(args.prompt)
    with reading(args.prompts):
        try:
            lines = args.prompts.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"is no UTF-8 text: {error.reason} at byte {error.start}",
                where=str(args.prompts),
                remedy="convert it (iconv -f latin1 -t utf-8)",
            ) from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise ConfigError("holds no prompts", where=str(args.prompts), remedy="write one a line")
    return found


def _requests(args: argparse.Namespace, coder: Coder, prompts: list[str]) -> list[Request]:
    from mpidl.errors import ConfigError
    from mpidl.generation import Request, Sampling

    stop = []
    for text in args.stop:
        tokens = coder.encode(text)
        if len(tokens) != 1:
            raise ConfigError(
                f"{text!r} has {len(tokens)} tokens",
                where="--stop",
                remedy="give a text of one token",
            )
        stop += tokens
    if args.texts < 1:
        raise ConfigError(f"{args.texts} texts are none", where="--texts", remedy="give 1 or more")
    return [
        Request(
            coder.encode(prompt),
            args.max_tokens,
            Sampling(
                args.temperature, args.top_k, args.top_p, args.seed + index * args.texts + number
            ),
            frozenset(stop),
        )
        for index, prompt in enumerate(prompts)
        for number in range(args.texts)
    ]


def _work(engine: Engine, coder: Coder, prompt: str | None) -> list[tuple[int, tuple[int, ...]]]:
    """Texts as tokens, by the number of their request; one text is shown as it is written."""
    from mpidl.generation.text import Stream

    found: list[tuple[int, tuple[int, ...]]] = []
    stream = Stream(coder)
    if prompt is not None:
        sys.stdout.write(prompt)
    while engine.busy:
        written, ended = engine.step()
        found += [(each.number, each.tokens) for each in ended]
        if prompt is not None:
            for _, token in written:
                sys.stdout.write(stream.add(token))
            sys.stdout.flush()
    if prompt is not None:
        print(stream.rest())
    return found
