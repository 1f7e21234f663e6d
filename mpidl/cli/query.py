"""Ask a server that `mpidl serve` has started, on this machine or in a SLURM job.

Finds it by the endpoint.json that the server writes beside its model, and sends the samples of a
file in batches. Needs no MPI.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpidl.serving.client import Model
    from mpidl.serving.query import Connection

NAME = "query"
ATTEMPTS = 4  # of a request, where the user would rather wait
FILES_WAIT = 60.0  # seconds for an answer as a file, unless --wait says otherwise
HELP = "outputs of a running server for the samples of a file"


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port[:9]) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "server",
        type=Path,
        help="a run folder or models.toml that is served, an endpoint.json, or a channel's folder",
    )
    parser.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="samples: .npy, .npz or .csv"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write, .npz or .csv (default: a table on stdout)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--model", metavar="NAME", help="where the server has several")
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="wait so long for the server to start, or to start again",
    )
    parser.add_argument(
        "--address",
        type=_address,
        metavar="HOST:PORT",
        help="where REST is reached, in place of what endpoint.json says (through a tunnel)",
    )
    parser.add_argument(
        "--identity", default="", metavar="NAME", help="whose certificate to show to the server"
    )
    parser.add_argument("--token", type=Path, metavar="FILE", help="a token to show to the server")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Ask."""
    from mpidl.inference.output import WRITERS, write_csv
    from mpidl.serving.query import ask, fit, read_arrays

    _check(args)
    arrays = read_arrays(args.input)
    connect, model = _connect(args)
    outputs = ask(connect, model, fit(arrays, model, args.input), ATTEMPTS if args.wait else 1)
    samples = len(next(iter(outputs.values()), ()))
    found: dict[str, Any] = {"model": model.name, "samples": samples}
    if args.output is not None:
        from mpidl.files import write_atomically, writing

        with writing(args.output), write_atomically(args.output) as partial:
            WRITERS[args.output.suffix](partial, outputs)
        if not args.json:
            print(f"outputs of {model.name} for {samples:,} samples written to {args.output}")
        return found | {"output": str(args.output)}
    if args.json:
        return found | {"outputs": {name: array.tolist() for name, array in outputs.items()}}
    write_csv(sys.stdout.buffer, outputs)
    return found


def _connect(args: argparse.Namespace) -> tuple[Callable[[], Connection], Model]:
    """How to connect to the server, and what its model takes."""
    from mpidl.serving.endpoint import place_of
    from mpidl.serving.folder_client import FolderClient, find_channel
    from mpidl.serving.login import Login
    from mpidl.serving.query import choose_model, find_server

    if args.address is None and find_channel(args.server, args.wait):
        made = FolderClient(args.server, args.wait or FILES_WAIT)
        models = {model.name: model for model in made.models()}
        name = choose_model(list(models), args.model)
        if name not in models:
            raise made.no_model(name, list(models))
        return lambda: made, models[name]
    place, login = place_of(args.server), Login(args.identity, args.token)
    with find_server(place, args.address, args.wait, login) as client:
        model = client.model(choose_model(client.models(), args.model))
    return lambda: find_server(place, args.address, args.wait, login), model


def _check(args: argparse.Namespace) -> None:
    """Refuse a file that cannot be written, before any request."""
    from mpidl.errors import ConfigError
    from mpidl.files import check_folder
    from mpidl.inference.output import WRITERS

    if args.output is None:
        return
    where = str(args.output)
    if args.output.suffix not in WRITERS:
        remedy = f"use one of {', '.join(WRITERS)}"
        raise ConfigError(f"unknown suffix {args.output.suffix!r}", where=where, remedy=remedy)
    check_folder(args.output)
    if args.output.exists() and not args.overwrite:
        remedy = "choose another --output, or add --overwrite"
        raise ConfigError("exists already", where=where, remedy=remedy)
