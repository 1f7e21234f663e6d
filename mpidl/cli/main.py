"""`mpidl COMMAND ...`: parses the command line, runs the command, ends all ranks when it fails.

Exit status: 0 success; 1 an error, with one message on stderr; 2 a wrong command line; 75 stopped
by a signal after saving (continue with --resume).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import mpidl
from mpidl.cli import (
    audit,
    bench,
    bundle,
    compare,
    doctor,
    evaluate,
    export,
    generate,
    index,
    init,
    keys,
    look,
    plan,
    policy,
    predict,
    quantize,
    query,
    reproduce,
    rewrap,
    seal,
    serve,
    shard,
    sign,
    summary,
    train,
    tune,
    unseal,
    verify,
)
from mpidl.comm import context as ranks
from mpidl.comm import launcher
from mpidl.errors import MpidlError, nearest, notice, wrap

HEAD_START = 2.0  # seconds in which rank 0 prints its message, before others may end the job
BROKEN_PIPE = 141  # exit status, as of a process that SIGPIPE has ended
COMMANDS = (
    shard,
    index,
    look,
    init,
    train,
    compare,
    evaluate,
    predict,
    generate,
    serve,
    query,
    quantize,
    export,
    seal,
    unseal,
    rewrap,
    sign,
    verify,
    audit,
    bundle,
    reproduce,
    summary,
    plan,
    tune,
    bench,
    doctor,
    keys,
    policy,
)


class _Parser(argparse.ArgumentParser):
    """Prints errors on rank 0 only: the launcher's environment tells the rank before MPI starts."""

    def __init__(self, *args: Any, module: Any = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._module = module

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; a command's arguments are added when it is the one to run.

        Their choices come from registries, and importing those of all commands takes time.
        """
        if self._module is not None:
            module, self._module = self._module, None
            module.add_arguments(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if launcher.rank() == 0:
            super().error(message)
        time.sleep(HEAD_START)
        sys.exit(2)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse does, with the nearest valid choice."""
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(
                action,
                f"invalid choice: {value!r}: {nearest(str(value), map(str, action.choices))}",
            )


def make_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = _Parser(prog="mpidl", description=mpidl.__doc__)
    parser.add_argument("--version", action="version", version=f"mpidl {mpidl.__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Parser
    )
    for module in COMMANDS:
        command = commands.add_parser(
            module.NAME, help=module.HELP, description=module.__doc__, module=module
        )
        command.add_argument(
            "--json", action="store_true", help="print one JSON object as the last line of stdout"
        )
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Its command line (default: of this process).

    Returns:
        The exit status.
    """
    args = make_parser().parse_args(argv)
    try:
        result: dict[str, Any] | None = args.run(args)
    except MpidlError as error:
        return _fail(error)
    except BrokenPipeError:  # as of `mpidl look DATA | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (OSError, MemoryError) as error:
        return _fail(wrap(error, f"running mpidl {args.command}"))
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        if ranks.current() is not None:
            ranks.init().abort(1)
        return 1
    if result is None:
        return 0
    status = int(result.pop("status", 0))
    if args.json and launcher.rank() == 0:
        sys.stderr.flush()
        print(json.dumps(result), flush=True)
    if status:
        _wait_for_root()
    return status


def _wait_for_root() -> None:
    """Let rank 0 print its message: a launcher kills all ranks when the first one fails."""
    context = ranks.current()
    if context is not None:
        context.barrier()


def _fail(error: MpidlError) -> int:
    """Print one message, and end the ranks.

    An error that all ranks know of ends each of them in order; any other one aborts the job.
    """
    context = ranks.current()
    alone = context is None or context.size == 1
    if alone or error.agreed:
        prints = (
            context.is_root if context is not None else launcher.rank() == 0 or not error.agreed
        )
        if prints:
            notice(str(error), "error")
        elif context is None:
            time.sleep(HEAD_START)
        _wait_for_root()
        return 1
    assert context is not None
    notice(str(error), f"error on rank {context.rank}")
    context.abort(1)
