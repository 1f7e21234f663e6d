"""How keys come to their certificates: certified by an authority, or, of jobs, by who submits them.

Here is also how a holder's keys are replaced by new ones.
"""

from __future__ import annotations

import secrets
import shutil
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mpidl.errors import ConfigError, SecurityError
from mpidl.security import keystore
from mpidl.security.authority import Authority
from mpidl.security.certificates import Issuer, Key, Wanted, dump_chain
from mpidl.security.identity import MATCH, load_certificates
from mpidl.security.names import RULES, Name, Purpose, check_name
from mpidl.security.requests import (
    KEY_FILES,
    MOST_REQUEST,
    Asked,
    Keys,
    Request,
    public_hex,
    read_request,
)
from mpidl.security.validation import TLS, holder

SINGLE: dict[str, Purpose] = {"sealing-certificate": "seal", "signing-certificate": "sign"}
HOSTED = ("certificate", "tls-certificate")
SUBMIT, SUBMIT_KEY = "submit-certificate", "submit.pem"
REQUEST = "request"  # kept beside keys that wait for their certificates

Chains = dict[str, tuple[x509.Certificate, ...]]


def certify(
    authority: Authority,
    request: Request,
    lifetime: timedelta | None = None,
    *,
    replaces: bool = False,
) -> Chains:
    """Issue the certificates of a request, and publish them.

    Args:
        authority: The site's.
        request: As `read_request` gives it; that it comes from whom it names is for people to see.
        lifetime: Of the certificates (default: the usual one of each kind).
        replaces: Whether they take the place of valid ones, which the caller revokes.

    Returns:
        Role (one of `CERTIFICATES`) -> chain.

    Raises:
        ConfigError: There can be no such certificate.
        OSError: The file system refuses.
    """
    name = check_name(authority.name.site, request.kind, request.name)
    with authority.locked():
        _check_free(authority, name, replaces)
        chains = _issue(authority, name, request, lifetime)
        for role, chain in chains.items():
            authority.publish(name, role, chain)
    return chains


def _issue(
    authority: Authority, name: Name, request: Request, lifetime: timedelta | None
) -> Chains:
    """The certificates of a request."""
    chains: Chains = {}
    for role, key in request.public().items():
        holder_name = Name(name.site, "submit", name.name) if role == SUBMIT else name
        rules = RULES[holder_name.kind]
        # who submits jobs gets a certificate of a shorter time, if a longer one is asked for
        time = min(lifetime, rules.longest) if role == SUBMIT and lifetime else lifetime
        hosts = request.hosts if role in HOSTED else ()
        wanted = Wanted(holder_name, key, _purposes(request, role), time or rules.usual, hosts)
        chains[role] = (authority.issuer.issue(wanted),)
    return chains


def _purposes(request: Request, role: str) -> set[Purpose]:
    """What a certificate of a request is for."""
    if role == SUBMIT:
        return set(RULES["submit"].purposes)
    if role in SINGLE:
        return {SINGLE[role]}
    most = set(RULES[request.kind].purposes)
    if role == "tls-certificate":
        return most & set(TLS)
    return most - {"seal", "tokens"} | ({"tokens"} if request.tokens else set())


def _check_free(authority: Authority, name: Name, replaces: bool) -> None:
    """Refuse a name that is somebody's: names are unique in a site, whatever they name.

    Raises:
        ConfigError: It is.
    """
    try:
        issued = authority.issued(name.name)
    except ConfigError:
        return
    now, revoked = datetime.now(UTC), authority.revoked()
    kinds = {holder(certificate).kind for certificate in issued} - {"submit"}
    valid = any(
        certificate.not_valid_after_utc > now and certificate.serial_number not in revoked
        for certificate in issued
    )
    if kinds != {name.kind} or (valid and not replaces):
        kind = "".join(kinds - {name.kind}) or name.kind
        raise ConfigError(
            f"a {kind} has the name {name.name!r}",
            where=str(authority.folder),
            remedy="choose another name; 'mpidl keys rotate' gives its holder new keys",
        )


def enroll(authority: Authority, folder: Path, asked: Asked) -> Chains:
    """Write keys and their certificates to a folder; nothing is left of it where that fails.

    Keys are on disk before certificates are published: nobody seals for a key that was lost.

    Raises:
        ConfigError: There can be no such certificate, or the folder has keys.
        OSError: The file system refuses.
    """
    check_empty(folder)
    existed = folder.exists()
    try:
        asked.keys.save(folder, asked.passphrase)
        chains = certify(authority, asked.request, asked.lifetime, replaces=asked.replaces)
    except BaseException:
        for name in KEY_FILES:
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            if not existed:
                folder.rmdir()
        raise
    install(folder, chains)
    return chains


def check_empty(folder: Path) -> None:
    """Refuse a folder that has keys.

    Raises:
        ConfigError: It has.
    """
    found = [path for path in folder.glob("*.pem") if path.is_file()]
    if found:
        raise ConfigError(
            "there are keys already, and what is sealed for them would be lost",
            where=str(found[0]),
            remedy="'mpidl keys rotate' replaces keys, and keeps old ones to open what is sealed",
        )


def check_answer(folder: Path, chains: Chains, source: Path) -> None:
    """Refuse certificates that are not of the keys in a folder, as its request has them.

    Args:
        folder: Of the keys.
        chains: The certificates.
        source: Where they lie.

    Raises:
        SecurityError: They are of other keys.
        DataError: The request cannot be read.
    """
    path = folder / REQUEST
    asked = read_request(keystore.read_public(path, MOST_REQUEST), str(path))
    wanted = {role: public_hex(key) for role, key in asked.public().items()}
    found = {role: _hex(chain[0]) for role, chain in chains.items()}
    if found != wanted or holder(chains["certificate"][0]).name != asked.name:
        raise SecurityError("holds certificates of other keys", where=str(source), remedy=MATCH)


def _hex(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    return public_hex(key) if isinstance(key, Key) else ""


def install(folder: Path, chains: Chains) -> None:
    """Write certificates beside their keys.

    Raises:
        OSError: The file system refuses.
    """
    for role, chain in chains.items():
        keystore.write_public(folder / f"{role}.pem", dump_chain(chain))


def issue_job(by: Path, job: str, lifetime: timedelta | None, folder: Path) -> Name:
    """Make the keys and certificates of a job, signed by its submitter.

    The keys are not encrypted: nobody types a passphrase on a compute node. They live as long as
    their certificates, and can do what a job does only.

    Args:
        by: Folder of the submitter's keys.
        job: Its name.
        lifetime: Of the certificates (default: a day).
        folder: Where to write them.

    Raises:
        ConfigError: The name or the lifetime is impossible; the folder has keys.
        SecurityError: The submitter's files are not right.
        DataError: They cannot be read.
        OSError: The file system refuses.
    """
    if not (by / SUBMIT_KEY).exists():
        raise ConfigError(
            "there is no key to submit jobs with",
            where=str(by),
            remedy="'mpidl keys issue --submit' or 'mpidl keys request --submit' make one",
        )
    chain = load_certificates(by / f"{SUBMIT}.pem")
    submitter = holder(chain[0])
    name = check_name(submitter.site, "job", job, submitter.name)
    check_empty(folder)
    key = keystore.load_key(by / SUBMIT_KEY)
    if not isinstance(key, Ed25519PrivateKey) or key.public_key() != chain[0].public_key():
        where = str(by / SUBMIT_KEY)
        raise SecurityError("is not the key of its certificate", where=where, remedy=MATCH)
    issuer, keys = Issuer(chain, key), Keys.generate("job")
    assert keys.sealing is not None and keys.signing is not None
    publics: dict[str, tuple[Key, set[Purpose]]] = {
        "certificate": (keys.key.public_key(), {"job-rank", "sign"}),
        "signing-certificate": (keys.signing.public_key(), {"sign"}),
        "sealing-certificate": (keys.sealing.public_key(), {"seal"}),
    }
    every = lifetime or RULES["job"].usual
    chains = {
        role: (issuer.issue(Wanted(name, public, purposes, every)), *chain)
        for role, (public, purposes) in publics.items()
    }
    keys.save(folder, None)
    install(folder, chains)
    return name


def rotate(authority: Authority, folder: Path, asked: Asked) -> Chains:
    """Put new keys in place of a holder's old ones.

    Old sealing keys are kept in `retired`, for what is still sealed for them; other old keys are
    removed. Their certificates expire in time: revoked, they would take what they have signed, and
    running jobs, with them.

    Args:
        authority: The site's.
        folder: Of the holder's keys.
        asked: The new keys.

    Returns:
        The new certificates, as `certify`.

    Raises:
        ConfigError: There can be no such certificate.
        SecurityError: The files are not right.
        DataError: They cannot be read.
        OSError: The file system refuses.
    """
    following = folder.with_name(f".new-{folder.name}.{secrets.token_hex(4)}")
    chains = enroll(authority, following, replace(asked, replaces=True))
    put_in_place(folder, following)
    return chains


def next_folder(folder: Path) -> Path:
    """Where new keys wait for their certificates while a holder's old ones are in use."""
    return folder.with_name(f".next-{folder.name}")


def put_in_place(folder: Path, following: Path) -> None:
    """Let the folder of new keys take the place of that of old ones, see `rotate`.

    Raises:
        SecurityError: The old files are not right.
        DataError: They cannot be read.
        OSError: The file system refuses.
    """
    _retire(folder, following)
    before = folder.with_name(f".before-{folder.name}.{secrets.token_hex(4)}")
    folder.rename(before)
    following.rename(folder)
    shutil.rmtree(before)


def _retire(folder: Path, following: Path) -> None:
    """Copy the sealing keys of a folder to the one that is to follow it."""
    retired = following / "retired"
    keystore.make_folder(retired)
    for path in (folder / "retired").glob("*.pem"):
        keystore.write_private(retired / path.name, keystore.read_private(path))
    if (folder / "sealing.pem").exists():
        serial = load_certificates(folder / "sealing-certificate.pem")[0].serial_number
        content = keystore.read_private(folder / "sealing.pem")
        keystore.write_private(retired / f"{serial:040x}.pem", content)
