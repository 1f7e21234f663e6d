"""Attempts to get past identity, policy and tokens; docs/security.md has them as a table.

`python -m tests.security.test_table` prints the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mpidl.errors import MpidlError
from mpidl.security import enrolment, jws, requests
from mpidl.security.certificates import make_root
from mpidl.security.identity import load_identity, load_published
from mpidl.security.names import Name
from mpidl.security.policy import parse_policy
from mpidl.security.revocation import load_list, make_list
from mpidl.security.signed_policy import load_policy, sign_policy
from mpidl.security.tokens import TokenVerifier, make_token
from tests.security.attacks import ATTACKS
from tests.security.site import PASSPHRASE, Site, now

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
HOUR = timedelta(hours=1)
HEAD = 'version = 1\nsite = "cluster.example.org"\n'
GRANT = '[[grants]]\nrole = "researcher"\nsubjects = ["person:ada"]\n'


def ada(site: Site) -> Any:
    return load_identity(site.keys("ada"), PASSPHRASE)


def mode(site: Site) -> None:
    (site.keys("ada") / "key.pem").chmod(0o640)
    ada(site)


def link(site: Site) -> None:
    key = site.keys("ada") / "key.pem"
    key.rename(site.folder / "key.pem")
    key.symlink_to(site.folder / "key.pem")
    ada(site)


def folder(site: Site) -> None:
    site.keys("ada").chmod(0o777)
    ada(site)


def swapped(site: Site) -> None:
    certificate = site.keys("ada") / "certificate.pem"
    certificate.write_bytes((site.keys("bob") / "certificate.pem").read_bytes())
    ada(site)


def old_list(site: Site) -> None:
    path = site.folder / "site" / "revoked.crl"
    kept = path.read_bytes()
    site.authority.revoke({1})
    site.trust()
    path.write_bytes(kept)
    site.trust()


def forged_list(site: Site) -> None:
    key = site.identity("bob").key
    content = make_list(site.authority.root, key, 9, {}, timedelta(days=1))
    load_list(content, site.authority.root, "file")


def no_list(site: Site) -> None:
    (site.folder / "site" / "revoked.crl").unlink()
    site.trust()


def revoked(site: Site) -> None:
    site.authority.revoke({site.identity("ada").chain[0].serial_number})
    site.trust().verify(site.identity("ada").chain, "login")


def other_root(site: Site) -> None:
    path = site.folder / "site" / "root.pem"
    path.write_bytes((site.keys("ada") / "certificate.pem").read_bytes())
    site.trust()


def policy(site: Site, text: str = GRANT, sign: bool = True) -> Path:
    path = site.folder / "site" / "policy.toml"
    path.write_text(HEAD + text)
    path.chmod(0o644)
    if sign:
        sign_policy(path, site.authority)
    return path


def changed_policy(site: Site) -> None:
    path = policy(site)
    path.write_text(path.read_text() + GRANT.replace("ada", "bob"))
    load_policy(site.trust())


def unsigned_policy(site: Site) -> None:
    policy(site, sign=False)
    load_policy(site.trust())


def old_policy(site: Site) -> None:
    path = policy(site)
    kept = {each: each.read_bytes() for each in (path, path.with_name("policy.toml.sig"))}
    path.write_text(path.read_text().replace("version = 1", "version = 2"))
    sign_policy(path, site.authority)
    load_policy(site.trust())
    for each, content in kept.items():
        each.write_bytes(content)
    load_policy(site.trust())


def own_policy(site: Site) -> None:
    """Signed by a person, who may sign other things."""
    path = policy(site)
    bob, name = site.identity("bob"), path.with_name("policy.toml.sig")
    payload = jws.parse(name.read_bytes(), "mpidl-policy+jwt", "x").payload
    name.write_text(jws.sign("mpidl-policy+jwt", payload, bob.key, bob.chain))
    load_policy(site.trust())


def asks(right: str, *thing: str, text: str = GRANT) -> Callable[[Site], None]:
    def attempt(site: Site) -> None:
        subject = site.trust().verify(site.identity("ada").chain, "login")
        parse_policy((HEAD + text).encode(), "policy.toml").require(subject, right, *thing)

    return attempt


def token(site: Site, **changes: Any) -> str:
    wanted = {"subject": "lab", "audience": "serve", "roles": ["client"], "lifetime": HOUR}
    wanted |= {"signer": site.identity(changes.pop("by", "portal")), "at": now()} | changes
    return make_token(**wanted)


def shows(after: timedelta = HOUR * 0, **changes: Any) -> Callable[[Site], None]:
    """Shows a token that long after it begins."""

    def attempt(site: Site) -> None:
        start = now()
        text = token(site, at=start - after, **changes)
        TokenVerifier(site.trust(), "serve").verify(text, start)

    return attempt


def no_algorithm(site: Site) -> None:
    head, body, _ = token(site).split(".")
    header = jws._decode(head.encode()).replace(b"EdDSA", b"none")
    TokenVerifier(site.trust(), "serve").verify(f"{jws._encode(header)}.{body}.")


def request_as_token(site: Site) -> None:
    text = requests.Keys.generate("person").request("person", "lab")
    TokenVerifier(site.trust(), "serve").verify(text)


def revoked_token(site: Site) -> None:
    text = token(site)
    serial = TokenVerifier(site.trust(), "serve").verify(text).serial
    site.authority.revoke({int(serial, 16)})
    TokenVerifier(site.trust(), "serve").verify(text)


def widened_token(site: Site) -> None:
    """A token for a role that no grant gives to tokens."""
    subject = TokenVerifier(site.trust(), "serve").verify(token(site, roles=["admin"]))
    text = GRANT.replace("person:ada", "token:*")
    parse_policy((HEAD + text).encode(), "policy.toml").require(subject, "keys")


def taken_name(site: Site) -> None:
    keys = requests.Keys.generate("person")
    asked = requests.read_request(keys.request("person", "ada").encode(), "file")
    enrolment.certify(site.authority, asked)


def stranger(site: Site) -> None:
    """A whole site of the same name, made by somebody else."""
    key = site.identity("bob").key
    root = make_root(Name("cluster.example.org", "site"), key, HOUR)
    content = make_list(root, key, 99, {}, timedelta(days=1))
    (site.folder / "site" / "revoked.crl").write_bytes(content)
    site.trust()


def stale(site: Site) -> None:
    site.trust().verify(site.identity("ada").chain, "login", now=now() + timedelta(days=40))


def published(site: Site) -> None:
    """What is sealed for ada would be open to bob."""
    folder = site.folder / "site" / "certificates"
    name = "sealing-certificate.pem"
    (folder / "ada" / name).write_bytes((folder / "bob" / name).read_bytes())
    load_published("ada")


UNKNOWN = GRANT.replace("researcher", "rsearcher")
PATHS = GRANT + 'data = ["/project/../**"]\n'
OTHERS: dict[str, tuple[Callable[[Site], Any], str]] = {
    "revoked": (revoked, "was revoked"),
    "a stale list of revoked certificates": (stale, "is stale"),
    "an old list put back": (old_list, "was rolled back"),
    "a forged list": (forged_list, "no list of revoked certificates that this site has signed"),
    "a list of another root of that name": (stranger, "no list of revoked certificates"),
    "no list": (no_list, "the file does not exist"),
    "a certificate in place of the root": (other_root, "not issued by this site"),
    "a key that the group can read": (mode, "others can read it"),
    "a key behind a link": (link, "is a symbolic link"),
    "a folder that others can write": (folder, "others can replace it"),
    "another certificate beside a key": (swapped, "is not the key of its certificate"),
    "another's certificate under a name": (published, "is of person:bob, not of ada"),
    "a wrong passphrase": (
        lambda site: load_identity(site.keys("ada"), b"guess"),
        "the passphrase is wrong",
    ),
    "a request for a name that is taken": (taken_name, "a person has the name"),
    "a policy without signature": (unsigned_policy, "is not signed"),
    "a changed policy": (changed_policy, "was changed after it was signed"),
    "an old policy put back": (old_policy, "was rolled back"),
    "a policy signed by a person": (own_policy, "its signature is wrong"),
    "an unknown role in a policy": (asks("train", text=UNKNOWN), "there is no role"),
    "a key twice in a policy": (asks("train", text=GRANT + 'role = "admin"\n'), "is no policy"),
    "a pattern that goes up": (asks("train", text=PATHS), "is no pattern"),
    "an object that goes up": (asks("read", "/project/ct/../mr"), "is no name of a data set"),
    "a right that is not granted": (asks("keys"), "may not keys"),
    "a token without algorithm": (no_algorithm, "is malformed"),
    "a request shown as a token": (request_as_token, "is malformed"),
    "a token of another audience": (shows(audience="other"), "is for other, not for serve"),
    "a token after its time": (shows(after=2 * HOUR), "has expired"),
    "a token before its time": (shows(after=-HOUR), "is not valid yet"),
    "a revoked token": (revoked_token, "was revoked"),
    "a token signed by a person": (shows(by="ada"), "is not for tokens"),
    "a token signed by a job": (shows(by="run-7"), "is not for tokens"),
    "a token that claims a role": (widened_token, "may not keys"),
}


@pytest.mark.parametrize("attempt", OTHERS)
def test_attempts_are_refused(own_site: Site, attempt: str) -> None:
    act, reason = OTHERS[attempt]
    with pytest.raises(MpidlError) as caught:
        act(own_site)
    assert reason in caught.value.what


def rows() -> Iterator[str]:
    """The table of docs/security.md."""
    yield "| attempt | refused with |"
    yield "| --- | --- |"
    yield from (f"| {name}, for {use} | {why} |" for name, (_, use, why) in ATTACKS.items())
    yield from (f"| {name} | {why} |" for name, (_, why) in OTHERS.items())


def test_the_table_of_the_page_is_that_of_the_tests() -> None:
    table = "\n".join(rows())
    assert len(table.splitlines()) > 42
    assert table in PAGE.read_text(), "python -m tests.security.test_table prints it"


if __name__ == "__main__":
    print("\n".join(rows()))
