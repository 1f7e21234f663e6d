"""Serve trained models: the Open Inference Protocol (KServe, Triton) over gRPC and REST.

Rank 0 speaks to clients and makes batches of their requests, which the other ranks compute. SIGTERM
or SIGUSR1: requests that wait are answered, new ones are refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mpidl.cli.arguments import add_backend

NAME = "serve"
HELP = "a server of trained models"


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 1 << 16:
        raise argparse.ArgumentTypeError(f"{port} is no port: choose one of 0 to 65535")
    return port


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "models", type=Path, help="models.toml (docs/serving.md), a run folder or a checkpoint"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--http-port", type=_port, default=8000, help="for REST; 0: any")
    parser.add_argument("--grpc-port", type=_port, default=8001, help="for gRPC; 0: any")
    parser.add_argument(
        "--identity",
        default="",
        metavar="NAME",
        help="of the server: TLS, and clients say who they are (docs/serving-security.md)",
    )
    parser.add_argument(
        "--endpoint",
        type=Path,
        metavar="FILE",
        help="to write for 'mpidl query' (default: endpoint.json beside the model)",
    )
    parser.add_argument(
        "--channel",
        type=Path,
        metavar="FOLDER",
        help="also answer requests that come as files (docs/serving-slurm.md)",
    )
    add_backend(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Serve until a signal. Collective."""
    from mpidl.comm.context import init
    from mpidl.serving.run import Options, serve

    options = Options(
        args.models,
        args.host,
        args.http_port,
        args.grpc_port,
        args.backend,
        args.identity,
        args.endpoint,
        args.channel,
    )
    return {"status": serve(init(), options)}
