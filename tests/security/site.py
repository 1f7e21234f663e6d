"""A site for tests, certificates that no authority would make, and bit flips."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

FLIPS = int(os.environ.get("MPIDL_TEST_FLIPS", "100"))  # per object; make fuzz takes more
PASSPHRASE = b"correct horse battery staple"


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


@dataclass
class Site:
    """A site in a folder.

    Attributes:
        folder: With keys (MPIDL_KEYS), site (MPIDL_SITE) and the passphrase.
        authority: Its opened authority.
    """

    folder: Path
    authority: Any

    def use(self, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("MPIDL_KEYS", str(self.folder / "keys"))
        patch.setenv("MPIDL_SITE", str(self.folder / "site"))
        patch.setenv("MPIDL_PASSPHRASE_FILE", str(self.folder / "passphrase"))

    def copy(self, folder: Path) -> Site:
        """The same in another folder."""
        shutil.copytree(self.folder, folder)
        (folder / "keys" / ".seen.json").unlink(missing_ok=True)
        places = {
            "folder": folder / "keys" / ".authority",
            "site": folder / "site",
        }
        return Site(folder, replace(self.authority, **places))

    def trust(self) -> Any:
        from mpidl.security.identity import Trust

        return Trust.load()

    def keys(self, name: str) -> Path:
        return self.folder / "keys" / name

    def identity(self, name: str) -> Any:
        from mpidl.security.identity import load_identity

        return load_identity(self.keys(name), PASSPHRASE)

    def issue(self, kind: str, name: str, **wishes: Any) -> Any:
        """A new identity, as `mpidl keys issue` makes it."""
        from mpidl.security import enrolment, requests

        keys = requests.Keys.generate(kind, submits=wishes.pop("submit", False))
        text = keys.request(kind, name, **wishes)
        request = requests.read_request(text.encode(), "request")
        asked = requests.Asked(keys, request, PASSPHRASE)
        enrolment.enroll(self.authority, self.keys(name), asked)
        return self.identity(name)

    def job(self, name: str, by: str = "ada", **options: Any) -> Any:
        from mpidl.security import enrolment

        enrolment.issue_job(self.keys(by), name, options.get("lifetime"), self.keys(name))
        return self.identity(name)

    def submit_issuer(self, name: str = "ada") -> Any:
        """What somebody who submits jobs can issue with: their chain and key."""
        from mpidl.security import keystore
        from mpidl.security.certificates import Issuer
        from mpidl.security.identity import load_certificates

        chain = load_certificates(self.keys(name) / "submit-certificate.pem")
        return Issuer(chain, keystore.load_key(self.keys(name) / "submit.pem", PASSPHRASE))


def make_site(folder: Path, patch: pytest.MonkeyPatch, name: str = "cluster.example.org") -> Site:
    from mpidl.security import authority
    from mpidl.security.names import RULES, check_name

    site = Site(folder / "all", None)
    site.use(patch)
    site.folder.mkdir(mode=0o700)
    write(site.folder / "passphrase", PASSPHRASE + b"\n")
    named = check_name(name, "site")
    site.authority = authority.create(named, PASSPHRASE, RULES["site"].usual, 30)
    site.issue("person", "ada", submit=True)
    site.issue("person", "bob")
    site.issue("service", "portal", tokens=True, hosts=("portal.example.org", "10.0.0.1"))
    site.issue("node", "node7", hosts=("node7",))
    site.job("run-7")
    return site


def write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def flips(content: bytes, seed: int = 0) -> Iterator[bytes]:
    """The content with one bit changed, at random positions."""
    source = random.Random(seed)
    count = 8 * len(content)
    for position in source.sample(range(count), min(FLIPS, count)):
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        yield bytes(changed)


def forge(issuer: Any, name: Any, key: Any, **changes: Any) -> Any:
    """A certificate that `Issuer.issue` would not make.

    Args:
        issuer: Who signs it.
        name: Of its holder.
        key: Its public key.
        changes: `purposes`, `lifetime`, `start`, `hosts`, `uri`, `subject`, `issuer_name`, `aki`;
            `drop`: types of extensions that are left out; `more`: extensions that replace those of
            their type, with whether they are critical; `signer`: the key that signs.
    """
    from cryptography import x509

    from mpidl.security import certificates as c
    from mpidl.security.names import RULES

    purposes = changes.get("purposes", RULES[name.kind].purposes)
    lifetime = changes.get("lifetime", timedelta(hours=1))
    wanted = c.Wanted(name, key, purposes, lifetime, changes.get("hosts", ()), changes.get("start"))
    plain = c._builder(wanted)
    above = issuer.chain[0]
    extensions = {type(each.value): (each.value, each.critical) for each in plain._extensions}
    found = above.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    aki = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found)
    extensions[x509.AuthorityKeyIdentifier] = (aki, False)
    for value, critical in changes.get("more", ()):
        extensions[type(value)] = (value, critical)
    start = (changes.get("start") or datetime.now(UTC)).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(changes.get("subject", name.distinguished))
        .issuer_name(changes.get("issuer_name", above.subject))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + lifetime)
    )
    for kind, (value, critical) in extensions.items():
        if kind not in changes.get("drop", ()):
            builder = builder.add_extension(value, critical)
    return builder.sign(changes.get("signer", issuer.key), changes.get("hash"))
