"""Arguments that several commands share; choices and help come from the registries."""

from __future__ import annotations

import argparse
import types
import typing
from pathlib import Path
from typing import Any

from mpidl.comm import launcher
from mpidl.errors import ConfigError
from mpidl.options import documented


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The positional argument `checkpoint`."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="a checkpoint file, or the output folder of a run (its best checkpoint)",
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """The positional argument `config`, and --set to override its values."""
    parser.add_argument("config", help="the run configuration, a TOML file (docs/configuration.md)")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one value, e.g. optim.lr=0.1",
    )


def add_backend(parser: argparse.ArgumentParser) -> None:
    """The option --backend."""
    from mpidl.backend.select import BACKENDS

    parser.add_argument(
        "--backend",
        default="auto",
        choices=list(BACKENDS),
        help="where to compute (default: %(default)s, a GPU where there is one)",
    )


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """How raw files are read: label, format, and the options of each format."""
    from mpidl.data.formats import IMPORTERS

    _add_roles(parser)
    parser.add_argument(
        "--format", choices=list(IMPORTERS), help="of the files (default: by their suffix)"
    )
    order = parser.add_mutually_exclusive_group()
    order.add_argument(
        "--channels-first",
        dest="channels",
        action="store_const",
        const="first",
        help="images are (channels, height, width): transpose them to (height, width, channels)",
    )
    order.add_argument(
        "--channels-last",
        dest="channels",
        action="store_const",
        const="last",
        help="images are (height, width, channels), even where it does not seem so",
    )
    for key, (kind, text) in _format_options().items():
        parser.add_argument(f"--{key.replace('_', '-')}", default=None, help=text, **_parsed(kind))


def _add_roles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--label",
        action="append",
        metavar="NAME",
        help="a label field or column of a table; may be given several times",
    )
    parser.add_argument(
        "--feature",
        dest="features",
        action="append",
        metavar="NAME",
        help="name of a feature field; may be given several times (default: inferred)",
    )
    parser.add_argument(
        "--real-labels",
        action="store_true",
        default=None,
        help="whole numbers in labels are amounts, for a regression, and not classes",
    )


def source_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `open_source` that the command line gives."""
    names = ("label", "features", "real_labels", "format", "channels", *_format_options())
    given = {name: getattr(args, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _format_options() -> dict[str, tuple[Any, str]]:
    """The options of all formats: name -> (type, help)."""
    from mpidl.data.formats import IMPORTERS

    found: dict[str, tuple[Any, str]] = {}
    for name in IMPORTERS:
        section = IMPORTERS.options(name)
        texts = documented(section)
        for key, kind in section.keys().items():
            about = f"{name}: {texts[key][:1].lower()}{texts[key][1:].rstrip('.')}"
            if key in found:  # formats that share an option mean the same by it
                about = f"{name}, {found[key][1]}"
            found[key] = kind, about
    return found


def _parsed(kind: Any) -> dict[str, Any]:
    """How argparse reads a value of a type, which may be optional."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = [choice for choice in typing.get_args(kind) if choice is not type(None)]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(kind) is typing.Literal:
        return {"choices": typing.get_args(kind)}
    return {"type": kind}


def check_alone(command: str) -> None:
    """Refuse to run a command of one process as the ranks of a job.

    Raises:
        ConfigError: A launcher has started several.
    """
    if launcher.size() > 1:
        raise ConfigError(
            f"is for one process, but {launcher.size()} were started",
            where=command,
            remedy="start it without mpirun or srun",
        )


def accept_json(actions: Any) -> None:
    """Let --json stand behind the action of a command that has some, as behind the command."""
    for action in actions.choices.values():
        action.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
