"""Write a trained model for other programs; the suffix of the file chooses the format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl.cli.arguments import add_checkpoint

if TYPE_CHECKING:
    from mpidl.comm.context import Context
    from mpidl.security.journal import Task

NAME = "export"
HELP = "a trained model for other programs: ONNX, or its parameters as safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    from mpidl.inference.export import EXPORTERS
    from mpidl.inference.export.formats import AUTO, DTYPES

    add_checkpoint(parser)
    parser.add_argument("output", type=Path, help=f"the file to write ({', '.join(EXPORTERS)})")
    parser.add_argument(
        "--input-dtype",
        choices=[AUTO, *DTYPES],
        default=AUTO,
        help="of the inputs of an ONNX program (default: as the training data are stored, or "
        "float32 where they are not at hand)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Export. Collective; rank 0 writes."""
    from mpidl.comm.context import init
    from mpidl.security.journal import audited

    context = init()
    with audited(NAME, context, args.checkpoint) as task:
        return _export(args, context, task)


def _export(args: argparse.Namespace, context: Context, task: Task) -> dict[str, Any]:
    from mpidl.inference.export import choose_exporter
    from mpidl.inference.predict import Predictor
    from mpidl.train.admission import Gate
    from mpidl.train.audited import sign_written

    with context.fail_together("checking the output"):
        exporter = choose_exporter(args.output, args.input_dtype)
    context.on_root(exporter.check, "checking the output")
    context.on_root(lambda: Gate.of_site().require("export"), "asking the policy")
    predictor = Predictor(args.checkpoint, context, backend="numpy")
    task.add_file("model.loaded", predictor.path)
    written = context.on_root(lambda: exporter.write(predictor), f"writing {args.output}", str)
    context.on_root(lambda: sign_written(args.output), f"signing {args.output}")
    task.add_file("export.written", args.output)
    parameters = predictor.model.parameters.count
    if context.is_root and not args.json:
        print(f"{written}, {parameters:,} parameters: {args.output}")
    return {"output": str(args.output), "parameters": parameters}
