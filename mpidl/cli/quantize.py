"""Make a smaller and faster model for prediction, and print accuracy and speed before and after.

Batch norms are folded into convolutions; matrices become int8, and with --mode dynamic are
multiplied as such. 'mpidl predict' and 'mpidl evaluate' take the file in place of a run.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl.cli.arguments import add_backend, add_checkpoint

if TYPE_CHECKING:
    from mpidl.comm.context import Context
    from mpidl.generation.measure import Contender
    from mpidl.inference.predict import Predictor
    from mpidl.security.journal import Task
    from mpidl.task import Evaluation

NAME = "quantize"
HELP = "a smaller, faster model for prediction (int8, 16 bits, pruning)"
SUFFIX = ".h5"
WINDOWS = 32  # whose perplexity is compared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_checkpoint(parser)
    parser.add_argument("--out", type=Path, required=True, help=f"the file to write ({SUFFIX})")
    parser.add_argument(
        "--mode",
        default="dynamic",
        choices=("dynamic", "weight_only", "none"),
        help="dynamic: matrices and their inputs are int8 in products; weight_only: matrices are "
        "stored as int8, products are float32; none: no int8 (default: %(default)s)",
    )
    parser.add_argument(
        "--storage",
        default="float32",
        choices=("float32", "float16", "bfloat16"),
        help="of parameters that are not int8; they are loaded as float32 (default: %(default)s)",
    )
    parser.add_argument(
        "--prune",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="set this share of each matrix to 0, the elements of smallest magnitude",
    )
    parser.add_argument(
        "--no-fold", dest="fold", action="store_false", help="leave batch norms as they are"
    )
    parser.add_argument("--data", help="a sharded data set (default: the test data of the run)")
    parser.add_argument(
        "--batch", type=int, default=64, help="samples of a measured pass (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_backend(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Quantize. Collective."""
    from mpidl.comm.context import init
    from mpidl.security.journal import audited

    context = init()
    with audited(NAME, context, args.checkpoint) as task:
        return _quantize(args, context, task)


def _quantize(args: argparse.Namespace, context: Context, task: Task) -> dict[str, Any]:
    from mpidl.inference.predict import Predictor
    from mpidl.inference.quantize import Recipe, measure, quantize, score
    from mpidl.train.audited import sign_written

    context.on_root(lambda: _check(args), "checking the options")
    before = Predictor(args.checkpoint, context, backend=args.backend)
    source = Predictor(args.checkpoint, context, backend="numpy")
    task.add_file("model.loaded", before.path)
    with context.fail_together("choosing the data"):
        folder = _choose_data(args, source)
    recipe = Recipe(args.mode, args.storage, args.fold, args.prune)
    about = quantize(source, recipe, args.out, context)
    context.on_root(lambda: sign_written(args.out), f"signing {args.out}")
    task.add_file("quantize.written", args.out)
    after = Predictor(args.out, context, backend=args.backend)
    found = [score(predictor, folder, context) for predictor in (before, after)]
    speeds = measure((before, after), folder, args.batch, context)
    with context.fail_together("writing texts"):
        texts = _texts(before, after, folder) if before.task.gives_tokens else {}
    sizes = [before.model.parameters.count * 4, args.out.stat().st_size]
    result = {
        "out": str(args.out),
        "int8": list(about.names),
        "folded": about.folded,
        "before": found[0].record() | {"samples_per_second": speeds[0], "bytes": sizes[0]},
        "after": found[1].record() | {"samples_per_second": speeds[1], "bytes": sizes[1]},
        "speedup": speeds[1] / speeds[0],
        "texts": texts,
    }
    if context.is_root and not args.json:
        _print(args.out, found, speeds, sizes)
        for name, (perplexity, rate) in texts.items():
            print(f"texts, {name}: perplexity {perplexity:.4g}; {rate:,.0f} tokens/s")
    return result


def _choose_data(args: argparse.Namespace, source: Predictor) -> str:
    from mpidl.errors import ConfigError

    folder = args.data or source.config.data.test
    where, what, remedy = str(args.checkpoint), "", ""
    if source.meta.quantized is not None:
        what, remedy = "is quantized already", "name the run that it was made from"
    elif folder is None:
        what, remedy = "the run has no test data", "name a data set with --data"
    if what or folder is None:
        raise ConfigError(what, where=where, remedy=remedy)
    return folder


def _texts(before: Predictor, after: Predictor, folder: str) -> dict[str, tuple[float, float]]:
    """Perplexity of some windows and tokens a second, as texts are written, for each way.

    Nothing for models that do not write token after token.
    """
    import numpy as np

    from mpidl.data.reader import Reader
    from mpidl.errors import ConfigError
    from mpidl.generation.engine import Engine
    from mpidl.generation.measure import perplexity, tokens_per_second

    try:
        Engine(before.model)
    except ConfigError:
        return {}
    (field,) = before.spec.features
    with closing(Reader(folder, driver="posix", fields=[field.name])) as reader:
        windows = reader.read([(0, min(WINDOWS, len(reader)))])[field.name].astype(np.int64)
    ways: dict[str, Contender] = {
        "before": (before.model, "float"),
        "after": (after.model, "float"),
        "after, int8 cache": (after.model, "int8"),
    }
    rates = tokens_per_second(list(ways.values()), windows[0, :4].tolist())
    found = [perplexity(model, windows, cache) for model, cache in ways.values()]
    return dict(zip(ways, zip(found, rates, strict=True), strict=True))


def _check(args: argparse.Namespace) -> None:
    """Refuse options that are impossible, before any work."""
    from mpidl.errors import ConfigError
    from mpidl.files import check_folder

    where, what, remedy = "", "", ""
    if args.out.suffix != SUFFIX:
        where, what = str(args.out), f"unknown suffix {args.out.suffix!r}"
        remedy = f"name a file {args.out.with_suffix(SUFFIX).name}"
    elif args.out.exists() and not args.overwrite:
        where, what = str(args.out), "exists already"
        remedy = "choose another --out, or add --overwrite"
    elif not 0 <= args.prune < 1:
        where, what = "--prune", f"takes a share from 0 to below 1, not {args.prune}"
        remedy = "write --prune 0.5"
    elif args.batch < 1:
        where, what, remedy = "--batch", f"takes a number from 1, not {args.batch}", "write 64"
    if what:
        raise ConfigError(what, where=where, remedy=remedy)
    check_folder(args.out)


def _print(out: Path, found: list[Evaluation], speeds: list[float], sizes: list[int]) -> None:
    for name, result, speed, size in zip(("before", "after"), found, speeds, sizes, strict=True):
        print(f"{name}: {result.describe()}; {speed:,.0f} samples/s; {size / 2**20:.2f} MiB")
    print(f"speed x {speeds[1] / speeds[0]:.2f}; written to {out}")
