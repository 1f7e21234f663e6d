"""Identity and policy together; and that a server follows the site's files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mpidl.errors import ConfigError, DataError, SecurityError
from mpidl.security.access import PAUSE, SiteFiles, open_access
from mpidl.security.signed_policy import sign_policy
from tests.security.site import PASSPHRASE, Site

POLICY = """version = {version}
site = "cluster.example.org"
[[grants]]
role = "researcher"
subjects = ["{subject}"]
data = ["/project/ct/**"]
"""


def sign(site: Site, subject: str, version: int = 1) -> Path:
    path = site.folder / "site" / "policy.toml"
    path.write_text(POLICY.format(version=version, subject=subject))
    path.chmod(0o644)
    sign_policy(path, site.authority)
    return path


@pytest.mark.parametrize("name", ["ada", "portal", "node7", "run-7"])
def test_who_is_granted_may_and_others_may_not(own_site: Site, name: str) -> None:
    kind = own_site.identity(name).kind
    sign(own_site, f"{kind}:{name}")
    access = open_access(own_site.keys(name), PASSPHRASE)
    assert access.require("read", "/project/ct/a").reason == "grant 1 (role researcher)"
    for right, thing in (("read", "/project/mr/a"), ("keys", ""), ("load", "m")):
        with pytest.raises(SecurityError, match=rf"{kind}:{name}.* may not {right}"):
            access.require(right, thing)
    with pytest.raises(SecurityError, match="person:bob may not train"):
        open_access(own_site.keys("bob"), PASSPHRASE).require("train")


def test_without_a_valid_identity_nothing_is_asked(own_site: Site) -> None:
    sign(own_site, "person:*")
    with pytest.raises(DataError, match="does not exist"):
        open_access(own_site.keys("nobody"), PASSPHRASE)
    revoked = {each.serial_number for each in own_site.authority.issued("ada")}
    own_site.authority.revoke(revoked)
    with pytest.raises(SecurityError, match="was revoked"):
        open_access(own_site.keys("ada"), PASSPHRASE)


def test_an_issuer_stands_for_nobody(own_site: Site, tmp_path: Path) -> None:
    sign(own_site, "person:*")
    folder = tmp_path / "submit"
    folder.mkdir(mode=0o700)
    for old, new in (("submit.pem", "key.pem"), ("submit-certificate.pem", "certificate.pem")):
        (own_site.keys("ada") / old).rename(folder / new)
    with pytest.raises(ConfigError, match="stands for nobody"):
        open_access(folder, PASSPHRASE)


@pytest.fixture
def files(own_site: Site) -> Any:
    """The site's files, and a clock that stands still."""
    now = [0.0]
    found = SiteFiles(clock=lambda: now[0])
    found.now = now  # type: ignore[attr-defined]
    sign(own_site, "person:ada")
    return found


def test_a_server_follows_the_files(own_site: Site, files: Any) -> None:
    trust, policy = files.load()
    subject = trust.verify(own_site.identity("ada").chain, "login")
    assert policy.check(subject, "train").allowed
    sign(own_site, "person:bob", version=2)
    own_site.authority.revoke({own_site.identity("bob").chain[0].serial_number})
    assert files.load()[1] is policy, "not before a second is over"
    files.now[0] += PAUSE
    trust, policy = files.load()
    assert not policy.check(subject, "train").allowed
    with pytest.raises(SecurityError, match="was revoked"):
        trust.verify(own_site.identity("bob").chain, "login")
    files.now[0] += PAUSE
    assert files.load()[1] is policy, "nothing has changed"


def test_a_spoiled_file_stops_it_until_it_is_mended(own_site: Site, files: Any) -> None:
    files.load()
    path = own_site.folder / "site" / "policy.toml"
    good = path.read_bytes()
    path.write_bytes(good.replace(b"ada", b"eve"))
    files.now[0] += PAUSE
    for _ in range(2):
        with pytest.raises(SecurityError, match="changed after it was signed"):
            files.load()
    path.write_bytes(good)
    os.utime(path)
    assert files.load()[1].rules.version == 1
    path.unlink()
    files.now[0] += PAUSE
    with pytest.raises(DataError, match="does not exist"):
        files.load()
