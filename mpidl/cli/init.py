"""Write a commented configuration for a data set, with the reason for each choice.

DATA is a folder made by 'mpidl shard' or 'mpidl index', or one with the parts of --split.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpidl.config.suggest import Facts, Suggestion

NAME = "init"
HELP = "write a commented TOML file for a data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    from mpidl.task import AUTO, TASKS

    parser.add_argument(
        "data", type=Path, nargs="+", help="a data set, or several that are to be mixed"
    )
    parser.add_argument(
        "--test", type=Path, metavar="DATA", help="the test data (default: the part test of DATA)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("run.toml"), help="file to write (default: %(default)s)"
    )
    parser.add_argument(
        "--task",
        default=AUTO,
        choices=[AUTO, *TASKS],
        help="what to train for (default: what the label suggests)",
    )
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="ranks to train on (default: by cores and batch)"
    )
    for role in ("feature", "label"):
        parser.add_argument(
            f"--{role}",
            action="append",
            default=[],
            metavar="NAME",
            help=f"a {role} field; may be given several times (default: all)",
        )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Suggest; needs no MPI launcher."""
    from mpidl.comm.binding import allowed_cores
    from mpidl.comm.launcher import rank
    from mpidl.config.suggest import suggest
    from mpidl.config.suggest.collect import Wish, check_test, collect, find_parts
    from mpidl.errors import notice
    from mpidl.files import write_file

    if rank():
        return {}  # one file for all
    _check_arguments(args)
    parts = [find_parts(folder) for folder in args.data]
    folders = [train for train, _ in parts]
    test = args.test or (parts[0][1] if len(parts) == 1 else None)
    test = find_test(test)
    check_test(test, folders)
    wish = Wish(args.task, tuple(args.feature), tuple(args.label), args.ranks)
    facts = collect(folders, test, wish, len(allowed_cores()))
    suggestion = suggest(facts, run_name(args.data[0], args.out))
    notes: list[str] = []
    command = f"mpirun -n {suggestion.ranks} mpidl train {args.out}"
    text, settings, parameters = render(args, facts, suggestion, command, notes)
    write_file(args.out, text)
    for note in notes:
        notice(note)
    if not args.json:
        print(
            f"{args.out}: {facts.task}, {suggestion.model} with {parameters:,} parameters for "
            f"{facts.samples:,} samples; the file says why. Train it with\n  {command}"
        )
    return {
        "out": str(args.out),
        "task": facts.task,
        "model": suggestion.model,
        "parameters": parameters,
        "ranks": suggestion.ranks,
        "command": command,
        "settings": settings,
        "notes": notes,
    }


def _check_arguments(args: argparse.Namespace) -> None:
    from mpidl.errors import ConfigError
    from mpidl.files import check_folder

    if args.ranks is not None and not 1 <= args.ranks <= 1 << 20:
        raise ConfigError(
            f"is {args.ranks}, but must be a positive number",
            where="--ranks",
            remedy="choose 1 or more",
        )
    check_folder(args.out)
    if args.out.suffix != ".toml":
        raise ConfigError(
            "the name of a configuration ends in .toml", where=str(args.out), remedy="rename it"
        )
    if args.out.exists() and not args.overwrite:
        raise ConfigError(
            "exists already",
            where=str(args.out),
            remedy="choose another --out, or --overwrite to replace it",
        )


def find_test(folder: Path | None) -> Path | None:
    """The test data, or their part of a folder that has parts."""
    from mpidl.config.suggest.collect import find_parts

    if folder is None:
        return None
    train, test = find_parts(folder)
    return test if test is not None else train


def run_name(data: Path, out: Path) -> str:
    """A name for the run that no run has: of the file, or of the data for run.toml."""
    folder = data.resolve()
    known = folder.parent.name if folder.name == "train" else folder.name
    name = re.sub(r"[^\w.-]", "_", out.stem if out.stem != "run" else known) or "run"
    number, found = 1, name
    while Path("runs", found).exists():
        number += 1
        found = f"{name}-{number}"
    return found


def render(
    args: argparse.Namespace,
    facts: Facts,
    suggestion: Suggestion,
    command: str,
    notes: list[str],
) -> tuple[bytes, dict[str, Any], int]:
    """The text of the file, its settings, and the parameters of the model.

    Raises:
        MpidlError: What was suggested does not fit the data.
    """
    from mpidl.config.suggest import write_toml
    from mpidl.errors import ConfigError

    body = write_toml(suggestion.blocks, ())
    parameters = check(body, facts, str(args.out), notes)
    data = " ".join(map(str, args.data))
    header = (
        f"Written by 'mpidl init {data}': {facts.task}, {suggestion.model} with "
        f"{parameters:,} parameters.",
        f"Train: {command}",
        "Change what you like; docs/configuration.md says what each setting means.",
    )
    try:
        text = write_toml(suggestion.blocks, header).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            "a path or a name is no UTF-8, as TOML needs it", where=data, remedy="rename it"
        ) from error
    return text, tomllib.loads(body), parameters


def check(text: str, facts: Facts, where: str, notes: list[str]) -> int:
    """Build what the text describes, as a run would; returns the parameters of the model.

    Raises:
        MpidlError: It does not fit the data.
    """
    from mpidl.backend.numpy_ops import NumpyOps
    from mpidl.config import build_config
    from mpidl.data.manifest import load_manifest
    from mpidl.train.augmented import augment
    from mpidl.train.build import build_for_data
    from mpidl.train.inputs import Inputs, choose_task

    config = build_config(tomllib.loads(text), where, note=notes.append)
    task = choose_task(facts.manifest, config, notes.append)
    model = build_for_data(config.model, task, NumpyOps())
    augment(config, Inputs(task, model), None)
    if facts.test is not None:
        task.check(load_manifest(facts.test), facts.test)
    return model.parameters.count
