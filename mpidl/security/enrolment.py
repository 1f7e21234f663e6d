"""How keys come to their certificates: made by their holder, requested, certified by an authority.

A private key never leaves the machine that made it: the authority sees a request, which holds
public keys and is signed with the new key. Jobs get their certificates from who submits them.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from mpidl.errors import ConfigError, SecurityError
from mpidl.security import jws, keystore
from mpidl.security.authority import Authority
from mpidl.security.certificates import MOST_HOSTS, Issuer, Key, Wanted, dump_chain
from mpidl.security.identity import MATCH, load_certificates
from mpidl.security.names import RULES, Name, Purpose, check_name
from mpidl.security.validation import holder

TYPE = "mpidl-request+jwt"
MOST_REQUEST = 8 << 10
SUBMIT, SUBMIT_KEY = "submit-certificate", "submit.pem"
KEY_FILES = ("key.pem", "sealing.pem", SUBMIT_KEY)
REQUEST = "request"  # kept beside keys that wait for their certificates

PublicKey = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
PublicKeyOrNone = Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9a-f]{64})?\Z")]


class Request(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a holder asks an authority for.

    Attributes:
        kind: What it is.
        name: Its name.
        key: Public Ed25519 key in hexadecimal; it signs the request.
        sealing: Public X25519 key, or empty.
        submit: Public Ed25519 key that is to issue certificates of jobs, or empty.
        hosts: Names and addresses of a server.
        tokens: Whether it is to sign tokens.
    """

    kind: Literal["person", "service", "node"]
    name: Annotated[str, msgspec.Meta(max_length=64)]
    key: PublicKey
    sealing: PublicKeyOrNone = ""
    submit: PublicKeyOrNone = ""
    hosts: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=253)], ...],
        msgspec.Meta(max_length=MOST_HOSTS),
    ] = ()
    tokens: bool = False


@dataclass(frozen=True)
class Keys:
    """New private keys of one holder.

    Attributes:
        key: Signs and logs in.
        sealing: Opens what is sealed for it; nodes have none.
        submit: Issues the certificates of its jobs, if it submits any.
    """

    key: Ed25519PrivateKey = field(repr=False)
    sealing: X25519PrivateKey | None = field(repr=False)
    submit: Ed25519PrivateKey | None = field(repr=False)

    @classmethod
    def generate(cls, kind: str, *, submits: bool = False) -> Keys:
        """Make new keys."""
        sealing = X25519PrivateKey.generate() if kind != "node" else None
        submit = Ed25519PrivateKey.generate() if submits else None
        return cls(Ed25519PrivateKey.generate(), sealing, submit)

    def save(self, folder: Path, passphrase: bytes | None) -> None:
        """Write them to their folder, which must hold none (`check_empty`).

        Raises:
            OSError: The file system refuses.
        """
        keystore.make_folder(folder)
        for name, key in self._files():
            keystore.write_private(folder / name, keystore.dump_key(key, passphrase))

    def _files(self) -> list[tuple[str, keystore.PrivateKey]]:
        keys = (self.key, self.sealing, self.submit)
        found = zip(KEY_FILES, keys, strict=True)
        return [(name, key) for name, key in found if key is not None]

    def request(
        self, kind: str, name: str, *, hosts: tuple[str, ...] = (), tokens: bool = False
    ) -> str:
        """The signed request for their certificates.

        Args:
            kind: "person", "service" or "node".
            name: Of their holder.
            hosts: Names and addresses of a server.
            tokens: Whether the holder is to sign tokens.
        """
        asked = {
            "kind": kind,
            "name": name,
            "key": _hex(self.key),
            "sealing": _hex(self.sealing) if self.sealing else "",
            "submit": _hex(self.submit) if self.submit else "",
            "hosts": hosts,
            "tokens": tokens,
        }
        content = msgspec.json.encode(msgspec.convert(asked, Request))
        return jws.sign(TYPE, content, self.key)


def _hex(key: keystore.PrivateKey) -> str:
    return _public_hex(key.public_key())


def read_request(content: bytes, where: str) -> Request:
    """A request, if it is signed with the key that it asks for.

    Raises:
        SecurityError: It is malformed, or signed with another key.
    """
    message = jws.parse(content.strip(), TYPE, where)
    try:
        request = msgspec.json.decode(message.payload, type=Request)
        key = _ed25519(request.key)
    except (ValueError, RecursionError) as error:
        raise jws.malformed(where) from error
    message.verify(key)
    return request


Chains = dict[str, tuple[x509.Certificate, ...]]


def certify(
    authority: Authority,
    request: Request,
    lifetime: timedelta | None = None,
    *,
    replace: bool = False,
) -> Chains:
    """Issue the certificates of a request, and publish them.

    Args:
        authority: The site's.
        request: As `read_request` gives it; that it comes from whom it names is for people to see.
        lifetime: Of the certificates (default: the usual one of each kind).
        replace: Whether they take the place of valid ones, which the caller revokes.

    Returns:
        Role ("certificate", "sealing-certificate", "submit-certificate") -> chain.

    Raises:
        ConfigError: There can be no such certificate.
        SecurityError: A public key is none.
        OSError: The file system refuses.
    """
    site = authority.name.site
    name = check_name(site, request.kind, request.name)
    _check_free(authority, name, replace)
    every = lifetime or RULES[name.kind].usual
    chains: Chains = {}

    def issue(role: str, holder: Name, key: Key, purposes: set[Purpose]) -> None:
        longest = min(every, RULES[holder.kind].usual) if holder != name else every
        hosts = request.hosts if role == "certificate" else ()
        wanted = Wanted(holder, key, purposes, longest, hosts)
        chains[role] = (authority.issuer.issue(wanted),)

    purposes = set(RULES[name.kind].purposes) - {"seal"}
    purposes -= set() if request.tokens else {"tokens"}
    issue("certificate", name, _ed25519(request.key), purposes)
    if request.sealing:
        sealing = X25519PublicKey.from_public_bytes(bytes.fromhex(request.sealing))
        issue("sealing-certificate", name, sealing, {"seal"})
    if request.submit:
        submit = Name(site, "submit", name.name)
        issue(SUBMIT, submit, _ed25519(request.submit), set(RULES["submit"].purposes))
    for role, chain in chains.items():
        authority.publish(name, role, chain)
    return chains


def _ed25519(text: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))


def _check_free(authority: Authority, name: Name, replace: bool) -> None:
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
    if kinds != {name.kind} or (valid and not replace):
        kind = "".join(kinds - {name.kind}) or name.kind
        raise ConfigError(
            f"a {kind} has the name {name.name!r}",
            where=str(authority.folder),
            remedy="choose another name; 'mpidl keys rotate' gives its holder new keys",
        )


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
    keys = {"certificate": asked.key, "sealing-certificate": asked.sealing, SUBMIT: asked.submit}
    wanted = {role: key for role, key in keys.items() if key}
    found = {role: _public_hex(chain[0].public_key()) for role, chain in chains.items()}
    if found != wanted or holder(chains["certificate"][0]).name != asked.name:
        raise SecurityError("holds certificates of other keys", where=str(source), remedy=MATCH)


def _public_hex(key: object) -> str:
    if not isinstance(key, Ed25519PublicKey | X25519PublicKey):
        return ""
    return key.public_bytes_raw().hex()


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
    assert keys.sealing is not None
    every = lifetime or RULES["job"].usual
    wanted = Wanted(name, keys.key.public_key(), {"job-rank", "sign"}, every)
    sealing = Wanted(name, keys.sealing.public_key(), {"seal"}, every)
    chains = {
        "certificate": (issuer.issue(wanted), *chain),
        "sealing-certificate": (issuer.issue(sealing), *chain),
    }
    keys.save(folder, None)
    install(folder, chains)
    return name


@dataclass(frozen=True)
class Rotation:
    """New keys in place of a holder's old ones.

    Old sealing keys are kept in `retired`, for what is still sealed for them; other old keys are
    removed. Their certificates expire in time: revoked, they would take what they have signed, and
    running jobs, with them.

    Attributes:
        folder: Of the holder's keys.
        request: For the new keys.
        keys: The new keys.
        passphrase: Of old and new keys; None: they are not encrypted.
        lifetime: Of the certificates (default: the usual one).
    """

    folder: Path
    request: Request
    keys: Keys = field(repr=False)
    passphrase: bytes | None = field(repr=False)
    lifetime: timedelta | None = None

    def carry_out(self, authority: Authority) -> Chains:
        """Make the new folder, and put it in place of the old one.

        Returns:
            The new certificates, as `certify`.

        Raises:
            ConfigError: There can be no such certificate.
            SecurityError: The files are not right.
            DataError: They cannot be read.
            OSError: The file system refuses.
        """
        following = self.folder.with_name(f"{self.folder.name}.{secrets.token_hex(4)}")
        self.keys.save(following, self.passphrase)
        _retire(self.folder, following)
        chains = certify(authority, self.request, self.lifetime, replace=True)
        install(following, chains)
        before = self.folder.with_name(f"{following.name}.before")
        self.folder.rename(before)
        following.rename(self.folder)
        shutil.rmtree(before)
        return chains


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
