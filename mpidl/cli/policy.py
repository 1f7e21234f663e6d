"""The site's policy: explain who may do what, and sign the file (docs/security.md)."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl.cli.arguments import accept_json, check_alone

if TYPE_CHECKING:
    from mpidl.security.subject import Subject

NAME = "policy"
HELP = "who may do what: explain a decision, sign the policy"
DENIED = 3  # exit status of a check that is not allowed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    from mpidl.security.policy import RIGHTS

    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser(
        "check", help="whether a subject may do something, and why (exit status 3: it may not)"
    )
    check.add_argument("subject", help="kind:name, such as person:ada, job:run7, token:lab")
    check.add_argument("right", choices=RIGHTS)
    check.add_argument("object", nargs="?", default="", help="data set (a folder) or model")
    check.add_argument("--submitter", default="", help="of a job")
    check.add_argument("--issuer", default="", help="of a token, as service:portal")
    check.add_argument("--role", action="append", default=[], help="to which a token is limited")
    check.add_argument("--site", help="of the subject (default: the policy's)")
    check.add_argument("--at", type=moment, help="when, as 2026-01-31T09:00+00:00 (default: now)")
    check.add_argument(
        "--draft", type=Path, metavar="FILE", help="a policy that need not be signed yet"
    )
    sign = actions.add_parser("sign", help="sign a policy with the site's root key")
    sign.add_argument("file", type=Path)
    accept_json(actions)


def moment(text: str) -> datetime:
    """A time with its time zone.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no time") from error
    if found.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no time zone: add +00:00 for UTC")
    return found


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Do it. Not collective: for one process."""
    check_alone("mpidl policy")
    return _sign(args) if args.action == "sign" else _check(args)


def _check(args: argparse.Namespace) -> dict[str, Any]:
    from mpidl.security.policy import OBJECTS, parse_policy

    if args.draft is not None:
        from mpidl.files import reading

        with reading(args.draft):
            policy = parse_policy(args.draft.read_bytes(), str(args.draft))
    else:
        from mpidl.extras import load_extra

        load_extra("cryptography", "checking the policy's signature")
        from mpidl.security.identity import Trust
        from mpidl.security.signed_policy import load_policy

        policy = load_policy(Trust.load())
    name = args.object
    if OBJECTS.get(args.right) == "data" and Path(name).is_dir() and name:
        from mpidl.security.objects import data_object

        name = data_object(Path(name))
    subject = _subject(args, policy.rules.site)
    decision = policy.check(subject, args.right, name, args.at)
    if not args.json:
        print(decision)
    found = {"allowed": decision.allowed, "subject": str(subject), "right": decision.right}
    more = {"object": decision.object, "reason": decision.reason}
    return found | more | {"status": 0 if decision.allowed else DENIED}


def _subject(args: argparse.Namespace, site: str) -> Subject:
    from mpidl.errors import ConfigError, nearest
    from mpidl.security.policy import SUBJECTS
    from mpidl.security.subject import Subject

    kind, _, name = args.subject.partition(":")
    if kind not in SUBJECTS or not name:
        raise ConfigError(
            f"{args.subject[:80]!r} is no subject: write kind:name",
            where="mpidl policy check",
            remedy=nearest(kind, SUBJECTS),
        )
    roles = tuple(args.role)
    submitter, issuer = args.submitter, args.issuer
    return Subject(args.site or site, kind, name, submitter=submitter, issuer=issuer, roles=roles)


def _sign(args: argparse.Namespace) -> dict[str, Any]:
    from mpidl.extras import load_extra
    from mpidl.files import writing

    load_extra("cryptography", "signing a policy")
    from mpidl.security.authority import open_authority
    from mpidl.security.signed_policy import sign_policy, signature_file

    with writing(signature_file(args.file)):
        policy = sign_policy(args.file, open_authority())
    if not args.json:
        print(f"signed version {policy.rules.version}: {signature_file(args.file)}")
    return {"version": policy.rules.version, "signature": str(signature_file(args.file))}
