"""Write the parameters of a checkpoint as a safetensors file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mpidl.cli.arguments import add_checkpoint

NAME = "export"
HELP = "parameters of a checkpoint as safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_checkpoint(parser)
    parser.add_argument("output", type=Path, help="the file to write (.safetensors)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Export. Collective; rank 0 writes."""
    from mpidl.comm.context import init
    from mpidl.inference.predict import Predictor
    from mpidl.models.weights import check_weights, save_weights

    context = init()
    context.on_root(lambda: check_weights(args.output), "checking the output")
    predictor = Predictor(args.checkpoint, context, backend="numpy")
    context.on_root(lambda: save_weights(predictor.model, args.output), f"writing {args.output}")
    parameters = predictor.model.parameters
    if context.is_root and not args.json:
        tensors = len(parameters.slots) + len(parameters.state_slots)
        print(f"{tensors} tensors, {parameters.count:,} parameters: {args.output}")
    return {"output": str(args.output), "parameters": parameters.count}
