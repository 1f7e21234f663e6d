"""How keys come to certificates: requests, jobs, rotation; and who cannot get one."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.errors import ConfigError, SecurityError
from mpidl.security import authority, enrolment, jws, requests
from mpidl.security.identity import load_certificates, load_published, retired_sealing_keys
from tests.security.site import PASSPHRASE, Site, flips


def request(kind: str = "person", name: str = "eve", **more: Any) -> tuple[Any, Any]:
    keys = requests.Keys.generate(kind, submits=more.pop("submit", False))
    text = keys.request(kind, name, **more)
    return keys, requests.read_request(text.encode(), "request")


def test_a_request_is_certified_and_its_certificates_published(own_site: Site) -> None:
    eve = own_site.issue("person", "eve", submit=True)
    trust = own_site.trust()
    assert trust.verify(eve.chain, "login").name == "eve"
    assert load_published("eve") == eve.sealing_chain
    assert trust.verify(load_published("eve"), "seal").name == "eve"
    assert trust.verify(own_site.job("run-9", by="eve").chain, "job-rank").submitter == "eve"


@pytest.mark.parametrize(
    ("kind", "more", "files"),
    [
        ("person", {}, 4),
        ("person", {"submit": True}, 5),
        ("service", {"hosts": ("a.example.org", "::1"), "tokens": True}, 4),
        ("node", {}, 2),
    ],
)
def test_kinds_have_the_certificates_that_they_need(
    own_site: Site, kind: str, more: dict[str, Any], files: int
) -> None:
    _, asked = request(kind, "eve", **more)
    chains = enrolment.certify(own_site.authority, asked)
    assert len(chains) == files
    ends = {role: chain[0].not_valid_after_utc for role, chain in chains.items()}
    assert ends["certificate"] > datetime.now(UTC) + timedelta(days=300)
    long = enrolment.certify(
        own_site.authority, request(kind, "eva", **more)[1], timedelta(days=700)
    )
    assert enrolment.SUBMIT not in ends or (
        long[enrolment.SUBMIT][0].not_valid_after_utc < long["certificate"][0].not_valid_after_utc
    )


def test_no_private_key_is_in_a_request() -> None:
    keys, asked = request(submit=True)
    text = json.dumps([asked.key, asked.tls, asked.signing, asked.sealing, asked.submit])
    for key in (keys.key, keys.sealing, keys.submit):
        assert key.private_bytes_raw().hex() not in text
    for key in (keys.tls, keys.signing):
        assert f"{key.private_numbers().private_value:064x}" not in text
    assert "key=" not in repr(keys)


def test_a_request_is_signed_with_the_key_that_it_asks_for() -> None:
    keys, asked = request()
    content = json.dumps({"kind": "person", "name": "eve", "key": asked.key}).encode()
    requests.read_request(jws.sign(requests.TYPE, content, keys.key).encode(), "file")
    other = jws.sign(requests.TYPE, content, Ed25519PrivateKey.generate())
    with pytest.raises(SecurityError, match="signature is wrong"):
        requests.read_request(other.encode(), "file")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "submit"},
        {"kind": "job"},
        {"kind": "site"},
        {"key": "00"},
        {"key": "g" * 64},
        {"tls": "02" + "ff" * 32},
        {"tls": "04" + "00" * 32},
        {"sealing": "00"},
        {"name": "x" * 65},
        {"hosts": ["a"] * 17},
        {"hosts": "a"},
        {"purposes": ["login"]},
        {"tokens": "yes"},
    ],
)
def test_requests_have_types_and_limits(change: dict[str, Any]) -> None:
    key = Ed25519PrivateKey.generate()
    said = {"kind": "person", "name": "eve", "key": key.public_key().public_bytes_raw().hex()}
    content = json.dumps(said | change).encode()
    with pytest.raises(SecurityError, match="is malformed"):
        requests.read_request(jws.sign(requests.TYPE, content, key).encode(), "file")


def test_no_bit_of_a_request_can_change() -> None:
    content = requests.Keys.generate("person").request("person", "eve").encode()
    for changed in flips(content):
        try:
            found = requests.read_request(changed, "file")
        except SecurityError:
            continue
        assert changed.strip() == content, found


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=200))
def test_anything_else_is_refused_with_our_error(content: bytes) -> None:
    with pytest.raises(SecurityError):
        requests.read_request(content, "file")


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("person", "ada", "a person has the name"),
        ("service", "ada", "a person has the name"),
        ("person", "portal", "a service has the name"),
        ("person", "../eve", "no such name"),
        ("person", "Eve", "no such name"),
    ],
)
def test_names_are_unique_and_plain(site: Site, kind: str, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        enrolment.certify(site.authority, request(kind, name)[1])


def test_a_name_is_free_again_for_its_kind_when_all_is_revoked(own_site: Site) -> None:
    issued = own_site.authority.issued("bob")
    own_site.authority.revoke({each.serial_number for each in issued})
    enrolment.certify(own_site.authority, request("person", "bob")[1])
    with pytest.raises(ConfigError, match="a person has the name"):
        enrolment.certify(own_site.authority, request("service", "bob")[1])


def test_hosts_are_of_servers(site: Site) -> None:
    with pytest.raises(ConfigError, match="has 1 hosts"):
        enrolment.certify(site.authority, request("person", "eve", hosts=("a",))[1])
    with pytest.raises(ConfigError, match="neither the name nor the address"):
        enrolment.certify(site.authority, request("node", "eve", hosts=("*",))[1])
    with pytest.raises(ConfigError, match="cannot be for tokens"):
        enrolment.certify(site.authority, request("node", "eve", tokens=True)[1])


def test_nothing_is_issued_by_halves(own_site: Site) -> None:
    with pytest.raises(ConfigError):
        enrolment.certify(own_site.authority, request("node", "eve", hosts=("*",))[1])
    with pytest.raises(ConfigError, match="no certificate was issued"):
        own_site.authority.issued("eve")
    assert not (own_site.folder / "site" / "certificates" / "eve").exists()


def test_a_job_has_keys_of_its_own_for_a_day(own_site: Site) -> None:
    job, ada = own_site.job("run-8"), own_site.identity("ada")
    assert job.key.private_bytes_raw() != ada.key.private_bytes_raw()
    assert job.sealing_key.private_bytes_raw() != ada.sealing_key.private_bytes_raw()
    end = job.chain[0].not_valid_after_utc
    assert end < datetime.now(UTC) + timedelta(hours=25)
    names = {path.name.removesuffix(".pem") for path in own_site.keys("run-8").iterdir()}
    assert names == {"key", "certificate", "sealing", "signing"} | {
        "sealing-certificate",
        "signing-certificate",
    }
    assert stat.S_IMODE(own_site.keys("run-8").stat().st_mode) == 0o700
    assert own_site.trust().verify(job.sealing_chain, "seal").submitter == "ada"


def test_only_who_submits_issues_for_jobs(own_site: Site) -> None:
    for name in ("bob", "portal", "run-7"):
        with pytest.raises(ConfigError, match="no key to submit jobs"):
            own_site.job("run-8", by=name)
    with pytest.raises(ConfigError, match="keys already"):
        own_site.job("run-7")
    with pytest.raises(ConfigError, match="no lifetime of a job"):
        own_site.job("run-8", lifetime=timedelta(days=15))
    with pytest.raises(ConfigError, match="no such name"):
        own_site.job("run/8")
    (own_site.keys("ada") / "submit.pem").write_bytes(
        (own_site.keys("ada") / "key.pem").read_bytes()
    )
    with pytest.raises(SecurityError, match="not the key of its certificate"):
        own_site.job("run-8")


def rotated(site: Site, name: str) -> Any:
    keys, asked = request("person", name, submit=True)
    new = requests.Asked(keys, asked, PASSPHRASE)
    enrolment.rotate(site.authority, site.keys(name), new)
    return site.identity(name)


def test_rotation_keeps_what_opens_what_is_sealed(own_site: Site) -> None:
    first = own_site.identity("ada")
    second, third = rotated(own_site, "ada"), rotated(own_site, "ada")
    trust = own_site.trust()
    keys = [each.key.private_bytes_raw() for each in (first, second, third)]
    assert len(set(keys)) == 3
    retired = retired_sealing_keys(own_site.keys("ada"), PASSPHRASE)
    assert {key.private_bytes_raw() for key in retired.values()} == {
        each.sealing_key.private_bytes_raw() for each in (first, second)
    }
    assert set(retired) == {
        f"{each.sealing_chain[0].serial_number:040x}" for each in (first, second)
    }
    assert load_published("ada") == third.sealing_chain
    # what was signed before, and jobs that run, go on
    assert trust.verify(first.chain, "sign").name == "ada"
    assert trust.verify(own_site.identity("run-7").chain, "job-rank").submitter == "ada"
    assert sorted(path.name for path in own_site.keys("").iterdir()) == sorted(
        [".authority", ".seen.json", "ada", "bob", "portal", "node7", "run-7"]
    )


def test_a_rotation_that_fails_leaves_the_old_keys(
    own_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = own_site.identity("ada").chain

    def fail(*args: Any, **more: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(enrolment, "certify", fail)
    with pytest.raises(OSError, match="disk full"):
        rotated(own_site, "ada")
    assert own_site.identity("ada").chain == before
    assert len(list(own_site.keys("").glob("ada*"))) == 1


def test_certificates_of_other_keys_are_not_installed(own_site: Site, tmp_path: Path) -> None:
    keys, asked = request()
    folder = own_site.keys("eve")
    keys.save(folder, PASSPHRASE)
    (folder / enrolment.REQUEST).write_text(keys.request("person", "eve"))
    chains = enrolment.certify(own_site.authority, asked)
    enrolment.check_answer(folder, chains, tmp_path)
    other = enrolment.certify(own_site.authority, request("person", "eva")[1])
    more = chains | {"x": chains["certificate"]}
    for wrong in (other, {"certificate": chains["certificate"]}, more, {}):
        with pytest.raises(SecurityError, match="certificates of other keys"):
            enrolment.check_answer(folder, wrong, tmp_path)


def test_a_site_has_one_root(own_site: Site) -> None:
    with pytest.raises(ConfigError, match="a root already"):
        authority.create(own_site.authority.name, PASSPHRASE, timedelta(days=1), 30)


def test_an_authority_needs_its_passphrase_and_its_key(own_site: Site) -> None:
    opened = authority.open_authority()
    assert opened.root == own_site.authority.root
    assert "key=" not in repr(opened)
    with pytest.raises(SecurityError, match="passphrase is wrong"):
        authority.open_authority(b"wrong")
    key = own_site.folder / "keys" / ".authority" / "root-key.pem"
    key.write_bytes((own_site.keys("ada") / "key.pem").read_bytes())
    with pytest.raises(SecurityError, match="not the key of its certificate"):
        authority.open_authority()
    key.unlink()
    with pytest.raises(ConfigError, match="no authority on this machine"):
        authority.open_authority()


def test_only_public_files_are_readable_by_others(own_site: Site) -> None:
    readable = {
        path.name
        for path in own_site.folder.rglob("*")
        if path.is_file() and path.stat().st_mode & 0o077
    }
    assert all(name.endswith(("certificate.pem", "root.pem", ".crl")) for name in readable)
    assert not any(path.stat().st_mode & 0o022 for path in own_site.folder.rglob("*"))
    assert load_certificates(own_site.keys("ada") / "certificate.pem")
