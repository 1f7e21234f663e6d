"""Keys and certificates of a site: of people, services, nodes and jobs (docs/security.md).

init makes the site's authority; issue certifies, also what request asks for on another machine,
where install takes the answer; revoke and rotate end certificates; show checks and lists them;
token makes a short-lived token for a client of a server.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mpidl.cli.arguments import accept_json, check_alone

NAME = "keys"
HELP = "keys and certificates of people, services, nodes and jobs"
SECONDS = {"m": 60, "h": 3600, "d": 86400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for add in (_init, _issue, _request, _install, _revoke, _rotate, _show, _token):
        add(actions)
    accept_json(actions)


Actions = Any  # of argparse, which has no public name for it


def _init(actions: Actions) -> None:
    parser = actions.add_parser(
        "init", help="make the authority of a site: its root, an empty list"
    )
    parser.add_argument("site", help="name of the site, such as cluster.example.org")
    parser.add_argument("--lifetime", type=seconds, help="of the root (default: 10 years)")
    _add_list(parser)


def _issue(actions: Actions) -> None:
    parser = actions.add_parser("issue", help="certify a new person, service, node or job")
    whom = parser.add_mutually_exclusive_group(required=True)
    _add_kinds(whom)
    whom.add_argument("--job", metavar="NAME", help="a job, signed by its submitter (--by)")
    whom.add_argument(
        "--request", type=Path, metavar="FILE", help="what 'mpidl keys request' wrote"
    )
    parser.add_argument(
        "--replace", action="store_true", help="of a request: also where the name has valid ones"
    )
    parser.add_argument("--by", metavar="NAME", help="of a job: who submits it")
    _add_wishes(parser)
    parser.add_argument("--out", type=Path, help="folder to write to (default: that of the name)")
    parser.add_argument(
        "--lifetime", type=seconds, help="such as 12h or 90d (default: a year; of jobs: a day)"
    )


def _request(actions: Actions) -> None:
    parser = actions.add_parser("request", help="make keys here, and a request for an authority")
    _add_kinds(parser.add_mutually_exclusive_group(required=True))
    _add_wishes(parser)
    parser.add_argument("--out", type=Path, required=True, help="file of the request")


def _install(actions: Actions) -> None:
    parser = actions.add_parser("install", help="put requested certificates beside their keys")
    parser.add_argument("name")
    parser.add_argument("folder", type=Path, help="what 'mpidl keys issue --request' wrote")


def _revoke(actions: Actions) -> None:
    parser = actions.add_parser("revoke", help="revoke certificates, and sign the list anew")
    parser.add_argument("name", nargs="?", help="all certificates of that name (default: no more)")
    parser.add_argument(
        "--serial", action="append", default=[], help="a certificate or token, by its number"
    )
    _add_list(parser)


def _rotate(actions: Actions) -> None:
    parser = actions.add_parser("rotate", help="new keys and certificates for a name")
    parser.add_argument("name")
    parser.add_argument(
        "--revoke",
        action="store_true",
        help="the old ones may be known to others: revoke them, and with them what they have "
        "signed and running jobs",
    )
    parser.add_argument(
        "--out", type=Path, help="write a request there, for an authority on another machine"
    )
    parser.add_argument("--lifetime", type=seconds, help="as in issue")
    _add_list(parser)


def _show(actions: Actions) -> None:
    parser = actions.add_parser("show", help="check and list the site's and one's own certificates")
    parser.add_argument("name", nargs="?", help="this name only")


def _token(actions: Actions) -> None:
    parser = actions.add_parser("token", help="make a short-lived token for a client of a server")
    parser.add_argument("subject", help="whom it names")
    parser.add_argument("--by", required=True, metavar="NAME", help="who signs it (issue --tokens)")
    parser.add_argument("--audience", required=True, metavar="SERVICE", help="the server it is for")
    parser.add_argument("--role", action="append", required=True, help="to which it is limited")
    parser.add_argument("--lifetime", type=seconds, default=3600, help="default: 1h, at most 24h")
    parser.add_argument("--out", type=Path, required=True, help="file to write, of mode 0600")


def _add_kinds(group: Any) -> None:
    for kind in ("person", "service", "node"):
        group.add_argument(f"--{kind}", metavar="NAME", help=f"a {kind}")


def _add_wishes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", action="append", default=[], help="name or address of a server; may be repeated"
    )
    parser.add_argument("--submit", action="store_true", help="may issue certificates of own jobs")
    parser.add_argument("--tokens", action="store_true", help="may sign tokens")
    parser.add_argument(
        "--no-passphrase",
        action="store_true",
        help="do not encrypt the keys, of a service or node that starts unattended",
    )


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--list-days",
        type=float,
        default=30,
        metavar="DAYS",
        help="for which the list of revoked certificates holds (default: %(default)s)",
    )


def seconds(text: str) -> int:
    """A time such as 30m, 12h or 90d, in seconds.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    number, unit = text[:-1], text[-1:]
    if unit not in SECONDS or not (number.isascii() and number.isdigit()) or len(number) > 9:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no time: write 30m, 12h or 90d")
    return int(number) * SECONDS[unit]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Do it. Not collective: for one process."""
    from mpidl.errors import notice
    from mpidl.extras import load_extra

    check_alone("mpidl keys")
    load_extra("cryptography", f"'mpidl keys {args.action}'")
    from mpidl.cli import key_actions

    result = key_actions.ACTIONS[args.action](args)
    lines = result.pop("lines")
    for text in result.get("notes", []):
        notice(text)
    if not args.json:
        print("\n".join(lines))
    return result
