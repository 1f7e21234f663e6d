"""Keys at rest: who may read them, passphrases, links, damage."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.errors import DataError, MpidlError, SecurityError
from mpidl.security import keystore
from mpidl.security.identity import load_identity, load_published, retired_sealing_keys
from tests.security.site import PASSPHRASE, Site, write

GENERATE = {
    "Ed25519": Ed25519PrivateKey.generate,
    "X25519": X25519PrivateKey.generate,
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
}


@pytest.fixture
def copy(site: Site, tmp_path: Path) -> Path:
    """The keys of ada, to be spoiled."""
    return Path(shutil.copytree(site.keys("ada"), tmp_path / "ada"))


def test_an_identity_is_what_was_saved(site: Site) -> None:
    ada = load_identity(site.keys("ada"))  # the passphrase of MPIDL_PASSPHRASE_FILE
    assert (ada.name, ada.kind) == ("ada", "person")
    assert ada.key.public_key() == ada.chain[0].public_key()
    assert ada.sealing_key is not None
    assert ada.sealing_key.public_key() == ada.sealing_chain[0].public_key()
    assert load_published("ada") == ada.sealing_chain
    assert load_published("ada", "certificate") == ada.chain
    node, job = site.identity("node7"), site.identity("run-7")
    assert node.sealing_key is None and job.sealing_key is not None
    assert (job.kind, job.submitter, len(job.chain)) == ("job", "ada", 2)


def test_keys_are_in_no_text_of_an_identity(site: Site) -> None:
    ada = site.identity("ada")
    secret = ada.key.private_bytes_raw().hex()
    assert "key=" not in repr(ada) and secret not in repr(ada) and secret not in str(ada)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o644])
@pytest.mark.parametrize("name", ["key.pem", "sealing.pem"])
def test_keys_that_others_can_read_are_refused(copy: Path, mode: int, name: str) -> None:
    (copy / name).chmod(mode)
    with pytest.raises(SecurityError, match="others can read it") as caught:
        load_identity(copy, PASSPHRASE)
    assert "chmod 600" in caught.value.remedy


@pytest.mark.parametrize("name", ["key.pem", "certificate.pem"])
def test_links_are_refused(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / name).rename(tmp_path / name)
    (copy / name).symlink_to(tmp_path / name)
    with pytest.raises(SecurityError, match="is a symbolic link"):
        load_identity(copy, PASSPHRASE)


def test_folders_that_others_can_write_are_refused(copy: Path) -> None:
    copy.chmod(0o770)
    with pytest.raises(SecurityError, match="others can replace it"):
        load_identity(copy, PASSPHRASE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_keys_of_another_user_are_refused(copy: Path) -> None:
    os.chown(copy / "key.pem", 1234, 1234)
    with pytest.raises(SecurityError, match="of another user"):
        load_identity(copy, PASSPHRASE)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_at_once(copy: Path, make: Any) -> None:
    (copy / "key.pem").unlink()
    make(copy / "key.pem", 0o600)
    with pytest.raises(MpidlError, match=r"no regular file|Is a directory"):
        load_identity(copy, PASSPHRASE)


@pytest.mark.parametrize("passphrase", [b"", b"wrong", PASSPHRASE + b" ", PASSPHRASE[:-1]])
def test_a_wrong_passphrase_is_refused(copy: Path, passphrase: bytes) -> None:
    with pytest.raises(SecurityError, match="the passphrase is wrong") as caught:
        load_identity(copy, passphrase)
    assert PASSPHRASE.decode() not in str(caught.value)


def test_without_anybody_to_ask_it_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPIDL_PASSPHRASE_FILE")
    with pytest.raises(SecurityError, match="nobody to ask"):
        load_identity(site.keys("ada"))
    load_identity(site.keys("run-7"))  # of a job: not encrypted


def test_passphrases_come_from_files_of_their_owner(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "passphrase"
    monkeypatch.setenv("MPIDL_PASSPHRASE_FILE", str(file))
    with pytest.raises(DataError, match="does not exist"):
        keystore.ask_passphrase("x")
    write(file, b"short\n")
    assert keystore.ask_passphrase("x") == b"short"
    with pytest.raises(SecurityError, match="less than 12"):
        keystore.ask_passphrase("x", new=True)
    write(file, b"x" * 2000)
    with pytest.raises(SecurityError, match="more than 1024 bytes"):
        keystore.ask_passphrase("x")
    write(file, PASSPHRASE)
    assert keystore.ask_passphrase("x", new=True) == PASSPHRASE
    file.chmod(0o644)
    with pytest.raises(SecurityError, match="others can read it"):
        keystore.ask_passphrase("x")


def test_passphrases_are_typed_twice_when_they_are_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPIDL_PASSPHRASE_FILE", raising=False)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    typed = ["long enough, really", "long enough, really", "one", "another", "once"]
    monkeypatch.setattr(keystore.getpass, "getpass", lambda prompt: typed.pop(0))
    assert keystore.ask_passphrase("x", new=True) == b"long enough, really"
    with pytest.raises(SecurityError, match="the two differ"):
        keystore.ask_passphrase("x", new=True)
    assert keystore.ask_passphrase("x") == b"once" and typed == []


@pytest.mark.parametrize("generate", GENERATE.values(), ids=GENERATE)
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(passphrase=st.none() | st.binary(min_size=1, max_size=200))
def test_keys_come_back(tmp_path: Path, generate: Any, passphrase: bytes | None) -> None:
    key, path = generate(), tmp_path / "key.pem"
    keystore.write_private(path, keystore.dump_key(key, passphrase))
    assert path.stat().st_mode & 0o777 == 0o600
    found = keystore.load_key(path, passphrase)
    assert keystore.dump_key(found, None) == keystore.dump_key(key, None)
    assert keystore.is_encrypted(path) == (passphrase is not None)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_reads_our_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystore, "SCRYPT_COST", 1 << 14)  # as outside of tests
    monkeypatch.setattr(keystore, "SCRYPT_PARALLEL", 5)
    key, path = Ed25519PrivateKey.generate(), tmp_path / "key.pem"
    keystore.write_private(path, keystore.dump_key(key, PASSPHRASE))
    command = ["openssl", "pkey", "-in", str(path), "-passin", "env:P", "-outform", "DER"]
    environment = os.environ | {"P": PASSPHRASE.decode()}
    found = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    assert found.endswith(key.private_bytes_raw())
    assert (
        b"scrypt"
        in subprocess.run(
            ["openssl", "asn1parse", "-in", str(path)], capture_output=True, check=True
        ).stdout.lower()
    )


def test_other_keys_are_refused(tmp_path: Path) -> None:
    other = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    for content in (other, b"", b"x", keystore.ENCRYPTED, b"\xff" * 100):
        write(tmp_path / "key.pem", content)
        with pytest.raises(SecurityError, match="is damaged"):
            keystore.load_key(tmp_path / "key.pem", PASSPHRASE)


def test_the_key_of_another_certificate_is_refused(site: Site, copy: Path) -> None:
    for name in ("key.pem", "sealing.pem"):
        kept = (copy / name).read_bytes()
        write(copy / name, (site.keys("bob") / name).read_bytes())
        with pytest.raises(SecurityError, match="not the key of its certificate"):
            load_identity(copy, PASSPHRASE)
        write(copy / name, kept)
    for name in ("sealing.pem", "sealing-certificate.pem"):
        (copy / name).write_bytes((site.keys("bob") / name).read_bytes())
    with pytest.raises(SecurityError, match="is not of person:ada"):
        load_identity(copy, PASSPHRASE)


def test_a_signing_key_in_place_of_a_sealing_key_is_refused(copy: Path) -> None:
    write(copy / "sealing.pem", (copy / "key.pem").read_bytes())
    write(copy / "sealing-certificate.pem", (copy / "certificate.pem").read_bytes())
    with pytest.raises(SecurityError, match="not the key of its certificate"):
        load_identity(copy, PASSPHRASE)


@pytest.mark.parametrize("name", ["", "nobody", "../ada", "ada/../bob", "/etc"])
def test_published_certificates_are_found_by_names_only(site: Site, name: str) -> None:
    with pytest.raises(SecurityError, match="there is no sealing-certificate"):
        load_published(name)


def test_published_certificates_of_somebody_else_are_refused(own_site: Site) -> None:
    """Valid ones, in the place of another's: what is sealed for ada would be open to bob."""
    folder = own_site.folder / "site" / "certificates"
    name = "sealing-certificate.pem"
    (folder / "ada" / name).write_bytes((folder / "bob" / name).read_bytes())
    with pytest.raises(SecurityError, match="is of person:bob, not of ada"):
        load_published("ada")


def test_retired_keys_that_are_none_are_refused(copy: Path) -> None:
    assert retired_sealing_keys(copy, PASSPHRASE) == {}
    (copy / "retired").mkdir(mode=0o700)
    write(copy / "retired" / "1.pem", (copy / "sealing.pem").read_bytes())
    assert list(retired_sealing_keys(copy)) == ["1"]
    write(copy / "retired" / "2.pem", (copy / "key.pem").read_bytes())
    with pytest.raises(SecurityError, match="no sealing key"):
        retired_sealing_keys(copy, PASSPHRASE)


def test_an_error_in_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key.pem"
    keystore.write_private(path, b"old")

    def fail(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(keystore, "publish", fail)
    with pytest.raises(OSError, match="disk full"):
        keystore.write_private(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
