"""The actions of `mpidl keys`: each takes the parsed command line, and returns what it did."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from mpidl.errors import ConfigError, SecurityError, nearest
from mpidl.files import check_folder, reading, writing
from mpidl.security import authority, enrolment, keystore, requests
from mpidl.security.certificates import fingerprint
from mpidl.security.identity import (
    Trust,
    key_folder,
    load_certificates,
    load_identity,
)
from mpidl.security.names import PURPOSES, RULES, WORD, Purpose, check_kind, check_name
from mpidl.security.tokens import make_token
from mpidl.security.validation import holder

Result = dict[str, Any]
SOON = timedelta(days=7)
KINDS = ("person", "service", "node")


def init(args: argparse.Namespace) -> Result:
    """Make the authority of a site."""
    name = check_name(args.site, "site")
    passphrase = keystore.ask_passphrase(f"the root of {args.site}", new=True)
    with writing(authority.authority_folder()):
        made = authority.create(
            name, passphrase, _lifetime(args) or RULES["site"].usual, args.list_days
        )
    return {
        "site": args.site,
        "root": fingerprint(made.root),
        "lines": [
            f"the authority of {args.site} is in {made.folder}: back it up, keep it offline",
            f"what others need is in {made.site}; SHA-256 of its root.pem's certificate:",
            f"  {fingerprint(made.root)}",
        ],
    }


def issue(args: argparse.Namespace) -> Result:
    """Certify a person, a service, a node, a job, or a request."""
    if args.job:
        return _issue_job(args)
    if args.by:
        raise ConfigError("--by is of jobs only", remedy="leave --by away, or add --job")
    if args.request:
        return _issue_request(args)
    kind, name = _whom(args)
    folder = args.out or key_folder(name)
    _check_passphrase(args, kind)
    enrolment.check_empty(folder)
    opened = authority.open_authority()
    check_name(opened.name.site, check_kind(kind), name)
    passphrase = None if args.no_passphrase else keystore.ask_passphrase(name, new=True)
    keys = requests.Keys.generate(kind, submits=args.submit)
    request = requests.read_request(_request(keys, args).encode(), "request")
    with writing(folder):
        asked = requests.Asked(keys, request, passphrase, _lifetime(args))
        chains = enrolment.enroll(opened, folder, asked)
    return _issued(chains, folder)


def _issue_job(args: argparse.Namespace) -> Result:
    if args.host or args.submit or args.tokens or not args.by:
        raise ConfigError(
            "a job has no hosts, and neither submits jobs nor signs tokens; it needs a submitter",
            where="mpidl keys issue --job",
            remedy="name the submitter with --by; leave --host, --submit and --tokens away",
        )
    folder = args.out or key_folder(args.job)
    with writing(folder):
        name = enrolment.issue_job(_own(args.by), args.job, _lifetime(args), folder)
    chain = load_certificates(folder / "certificate.pem")
    return _issued({"certificate": chain}, folder) | {"name": str(name)}


def _issue_request(args: argparse.Namespace) -> Result:
    if args.out is None:
        raise ConfigError(
            "where should its certificates go?",
            where="mpidl keys issue --request",
            remedy="name a new folder with --out, for 'mpidl keys install'",
        )
    with reading(args.request):
        content = args.request.read_bytes()[: requests.MOST_REQUEST + 1]
    request = requests.read_request(content, str(args.request))
    enrolment.check_empty(args.out)
    with writing(args.out):
        opened = authority.open_authority()
        chains = enrolment.certify(opened, request, _lifetime(args), replaces=args.replace)
        keystore.make_folder(args.out, 0o755)
        enrolment.install(args.out, chains)
    return _issued(chains, args.out)


def request(args: argparse.Namespace) -> Result:
    """Make keys, and a request for their certificates."""
    kind, name = _whom(args)
    check_name("site", check_kind(kind), name)
    folder = key_folder(name)
    _check_passphrase(args, kind)
    enrolment.check_empty(folder)
    check_folder(args.out)
    passphrase = None if args.no_passphrase else keystore.ask_passphrase(name, new=True)
    keys = requests.Keys.generate(kind, submits=args.submit)
    with writing(args.out):
        keys.save(folder, passphrase)
        text = _request(keys, args).encode()
        keystore.write_public(folder / enrolment.REQUEST, text)
        keystore.write_public(args.out, text)
    line = f"keys in {folder}; have {args.out} certified: 'mpidl keys issue --request'"
    return {"name": f"{kind}:{name}", "request": str(args.out), "lines": [line]}


def install(args: argparse.Namespace) -> Result:
    """Put certificates beside the keys that they are of."""
    folder = _own(args.name)
    files = {role: args.folder / f"{role}.pem" for role in requests.CERTIFICATES}
    chains = {role: load_certificates(path) for role, path in files.items() if path.exists()}
    following = enrolment.next_folder(folder)
    rotates = following.is_dir()
    enrolment.check_answer(following if rotates else folder, chains, args.folder)
    trust = Trust.load()
    trust.verify(chains["certificate"], _purpose(chains["certificate"][0]))
    for role in enrolment.SINGLE.keys() & chains.keys():
        trust.verify(chains[role], enrolment.SINGLE[role])
    with writing(folder):
        enrolment.install(following if rotates else folder, chains)
        if rotates:
            enrolment.put_in_place(folder, following)
    return _issued(chains, folder)


def revoke(args: argparse.Namespace) -> Result:
    """Revoke certificates and tokens, and sign a new list, also of no more than before."""
    serials = {_serial(text) for text in args.serial}
    opened = authority.open_authority()
    if args.name:
        serials |= {certificate.serial_number for certificate in opened.issued(args.name)}
    with writing(opened.site):
        number = opened.revoke(serials, args.list_days)
    line = (
        f"{len(serials)} revoked; list number {number}: bring {opened.site / 'revoked.crl'} to all"
    )
    return {"revoked": [f"{serial:040x}" for serial in sorted(serials)], "number": number} | {
        "lines": [line]
    }


def _serial(text: str) -> int:
    digits = text.lower().replace(":", "")
    if not re.fullmatch(r"[0-9a-f]{1,40}", digits):
        raise ConfigError(
            f"{text[:80]!r} is no number of a certificate or token",
            where="--serial",
            remedy="copy it from 'mpidl keys show', or 'openssl x509 -serial -noout -in FILE'",
        )
    return int(digits, 16)


def rotate(args: argparse.Namespace) -> Result:
    """New keys for a name."""
    folder = _own(args.name)
    old = load_certificates(folder / "certificate.pem")[0]
    kind, name = holder(old).kind, holder(old).name
    passphrase = keystore.passphrase_of(folder / "key.pem", name)
    if passphrase is not None:
        keystore.load_key(folder / "key.pem", passphrase)
    if kind == "job":
        raise ConfigError(
            "the keys of a job are not rotated",
            where=str(folder),
            remedy="issue those of a new job",
        )
    keys = requests.Keys.generate(kind, submits=(folder / enrolment.SUBMIT_KEY).exists())
    text = keys.request(kind, name, hosts=_hosts(old), tokens=_has(old, "tokens"))
    if args.out is not None:
        return _rotate_elsewhere(args, keys, passphrase, text)
    request = requests.read_request(text.encode(), "request")
    opened = authority.open_authority()
    before = {certificate.serial_number for certificate in opened.issued(name)}
    with writing(folder):
        asked = requests.Asked(keys, request, passphrase, _lifetime(args))
        chains = enrolment.rotate(opened, folder, asked)
        number = opened.revoke(before, args.list_days) if args.revoke else None
    result = _issued(chains, folder) | {"revoked": number}
    result["lines"] += [f"  all before are revoked: list number {number}"] if args.revoke else []
    return result


def _rotate_elsewhere(
    args: argparse.Namespace, keys: requests.Keys, passphrase: bytes | None, text: str
) -> Result:
    """New keys, and a request for an authority on another machine; the old ones stay in use."""
    if args.revoke:
        raise ConfigError(
            "certificates are revoked where the authority is",
            where="--revoke",
            remedy="leave it away here; 'mpidl keys revoke' there",
        )
    check_folder(args.out)
    following = enrolment.next_folder(_own(args.name))
    with writing(following):
        if following.exists():  # of a request without answer
            shutil.rmtree(following)
        keys.save(following, passphrase)
        keystore.write_public(following / enrolment.REQUEST, text.encode())
        keystore.write_public(args.out, text.encode())
    line = f"have {args.out} certified ('mpidl keys issue --replace --request'), then install it"
    return {"name": args.name, "request": str(args.out), "revoked": None, "lines": [line]}


def show(args: argparse.Namespace) -> Result:
    """Check and list certificates."""
    trust = Trust.load()
    until, number = trust.revocations.until, trust.revocations.number
    lines = [
        f"site {trust.site}: root until {trust.root.not_valid_after_utc:%F}, SHA-256 "
        f"{fingerprint(trust.root)}",
        f"list of revoked certificates: number {number}, {len(trust.revocations.serials)} of them, "
        f"until {until:%F %T} UTC",
    ]
    folders = [_own(args.name)] if args.name else sorted(keystore.keys_folder().glob("[!.]*"))
    shown, notes = [], []
    for folder in (folder for folder in folders if (folder / "certificate.pem").exists()):
        entry = _shown(folder, trust)
        shown.append(entry)
        lines.append(f"{entry['name']}: {entry['state']}; {folder}")
        notes += [f"{folder}: {entry['problem']}"] if entry["problem"] else []
    problems = len(notes)
    notes += _soon("the list of revoked certificates", trust.revocations.until.isoformat())
    for entry in shown:
        notes += [] if entry["problem"] else _soon(entry["name"], entry["until"])
    result = {"site": trust.site, "number": number, "until": until.isoformat(), "identities": shown}
    return result | {"lines": lines, "notes": notes, "status": 1 if problems else 0}


def _soon(what: str, until: str) -> list[str]:
    """A note of what ends within a week."""
    left = datetime.fromisoformat(until) - datetime.now(UTC)
    return [f"{what} ends in {max(left, timedelta(0))}"] if left < SOON else []


def _shown(folder: Path, trust: Trust) -> Result:
    """The state of one folder of keys."""
    chain = load_certificates(folder / "certificate.pem")
    others = [load_certificates(path) for path in folder.glob("*-certificate.pem")]
    end = min(each[0].not_valid_after_utc for each in (chain, *others))
    problem = ""
    try:
        trust.verify(chain, _purpose(chain[0]))
        for path in folder.glob("*.pem"):
            if path.name in requests.KEY_FILES:
                keystore.read_private(path)
    except SecurityError as error:
        problem = str(error)
    state = f"refused: {problem.splitlines()[0]}" if problem else f"valid until {end:%F %T} UTC"
    serial = f"{chain[0].serial_number:040x}"
    name = str(holder(chain[0]))
    return {"name": name, "serial": serial, "until": end.isoformat()} | {
        "state": state,
        "problem": problem,
    }


def token(args: argparse.Namespace) -> Result:
    """Make a token."""
    check_folder(args.out)
    signer = load_identity(_own(args.by))
    subject = Trust.load().verify(signer.chain, "tokens")
    lifetime = timedelta(seconds=args.lifetime)
    text = make_token(signer, args.subject, args.audience, args.role, lifetime)
    with writing(args.out):
        keystore.write_private(args.out, text.encode() + b"\n")
    lines = [f"a token of {args.subject} for {args.audience}, signed by {subject}: {args.out}"]
    return {"subject": args.subject, "audience": args.audience, "lines": lines}


ACTIONS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "init": init,
    "issue": issue,
    "request": request,
    "install": install,
    "revoke": revoke,
    "rotate": rotate,
    "show": show,
    "token": token,
}


def _lifetime(args: argparse.Namespace) -> timedelta | None:
    return timedelta(seconds=args.lifetime) if args.lifetime is not None else None


def _whom(args: argparse.Namespace) -> tuple[str, str]:
    """Kind and name on the command line, of which there is one."""
    return next((kind, getattr(args, kind)) for kind in KINDS if getattr(args, kind) is not None)


def _own(name: str) -> Path:
    """The folder of an identity's keys.

    Raises:
        ConfigError: There is none, or `name` is no name.
    """
    folder = key_folder(name)
    if not WORD.fullmatch(name) or not folder.is_dir():
        names = sorted(path.name for path in keystore.keys_folder().glob("[!.]*"))
        raise ConfigError(
            f"there are no keys of {name[:80]!r}",
            where=str(keystore.keys_folder()),
            remedy=nearest(name, names) if names else "'mpidl keys issue' or 'request' makes them",
        )
    return folder


def _check_passphrase(args: argparse.Namespace, kind: str) -> None:
    """Refuse unencrypted keys of people.

    Raises:
        ConfigError: They would be.
    """
    if args.no_passphrase and kind == "person":
        raise ConfigError(
            "the keys of a person are always encrypted",
            where="--no-passphrase",
            remedy="leave it away; of jobs, services and nodes keys may lie open",
        )


def _request(keys: requests.Keys, args: argparse.Namespace) -> str:
    kind, name = _whom(args)
    return keys.request(kind, name, hosts=tuple(args.host), tokens=args.tokens)


def _purpose(certificate: x509.Certificate) -> Purpose:
    return "server" if holder(certificate).kind == "node" else "sign"


def _hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def _has(certificate: x509.Certificate, purpose: Purpose) -> bool:
    found = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    return PURPOSES[purpose] in found


def _issued(chains: enrolment.Chains, folder: Path) -> Result:
    """What was issued, for people and programs."""
    first = chains["certificate"][0]
    end = {role: chain[0].not_valid_after_utc for role, chain in chains.items()}
    lines = [f"{holder(first)}: {folder}"]
    lines += [f"  {role} until {when:%F %T} UTC" for role, when in end.items()]
    return {
        "name": str(holder(first)),
        "folder": str(folder),
        "serials": {role: f"{chain[0].serial_number:040x}" for role, chain in chains.items()},
        "until": {role: when.isoformat() for role, when in end.items()},
        "lines": lines,
    }
