"""Who signs, and who is believed: keys, certificates, the site."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from mpidl.cli.main import main
from mpidl.errors import ConfigError, SecurityError
from mpidl.security import signing
from mpidl.security.identity import load_certificates
from mpidl.security.keystore import load_key
from mpidl.security.signer import Signer, load_signer
from mpidl.security.trusted import Trusted
from tests.security.authority import (
    START,
    Authority,
    new_ec,
    write_identity,
    write_key,
    write_private,
)
from tests.security.site import PASSPHRASE, Site


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "sub" / "a.bin").write_bytes(b"1")
    return tmp_path / "model"


@pytest.mark.parametrize("root", ["ed25519", "ec"])
def test_certificates_both_ways(model: Path, tmp_path: Path, root: str) -> None:
    from model_signing import signing as theirs
    from model_signing import verifying

    authority = Authority(key=None if root == "ed25519" else new_ec())
    folder = write_identity(tmp_path / "keys" / "ada", authority, "ada")
    pem = authority.write(tmp_path / "root.pem")
    written = signing.sign(model, load_signer(str(folder)), tmp_path / "ours.sig")
    verifying.Config().use_certificate_verifier(certificate_chain=[pem]).verify(model, written)
    theirs.Config().use_certificate_signer(
        private_key=folder / "signing.pem",
        signing_certificate=folder / "signing-certificate.pem",
        certificate_chain=[pem],
    ).sign(model, tmp_path / "theirs.sig")
    for name in ("ours.sig", "theirs.sig"):
        found = signing.verify(model, Trusted.load([pem]), tmp_path / name)
        assert found.signatory.name == "ada"
        other = Authority().write(tmp_path / "other.pem")
        with pytest.raises(SecurityError, match="do not lead to a root"):
            signing.verify(model, Trusted.load([other]), tmp_path / name)


def test_chains_that_are_refused(tmp_path: Path) -> None:
    root, key = Authority(), new_ec()
    pem = root.write(tmp_path / "root.pem")
    (tmp_path / "f").write_bytes(b"1")

    def refuse(words: str, *chain: Any) -> None:
        signing.sign(tmp_path / "f", Signer(key, tuple(chain)))
        with pytest.raises(SecurityError, match=words):
            signing.verify(tmp_path / "f", Trusted.load([pem]))

    good = root.issue("ada", key.public_key())
    signing.sign(tmp_path / "f", Signer(key, (good,)))
    signing.verify(tmp_path / "f", Trusted.load([pem]))
    # no authority; too long a path; not for signing; outside of its authority's life
    middle_key = ed25519.Ed25519PrivateKey.generate()
    for options, words in [
        ({}, "not that of an authority"),
        ({"ca": True, "path_length": 0}, ""),
        ({"ca": True, "days": 0.5}, "not valid when"),
    ]:
        middle = Authority("middle", middle_key)
        middle.certificate = root.issue("middle", middle_key.public_key(), **options)
        leaf = middle.issue("ada", key.public_key(), start=START + timedelta(days=0.7))
        if words:
            refuse(words, leaf, middle.certificate)
        else:
            signing.sign(tmp_path / "f", Signer(key, (leaf, middle.certificate)))
            signing.verify(tmp_path / "f", Trusted.load([pem]))
            sub = Authority("sub", middle_key)
            sub.certificate = middle.issue("sub", middle_key.public_key(), ca=True)
            refuse(
                "not that of an authority",
                sub.issue("eve", key.public_key()),
                sub.certificate,
                middle.certificate,
            )


def test_leaves_that_are_refused(tmp_path: Path) -> None:
    root, key = Authority(), new_ec()
    pem = root.write(tmp_path / "root.pem")
    (tmp_path / "f").write_bytes(b"1")
    good = root.issue("ada", key.public_key())

    def refuse(words: str, *chain: Any, trust: list[Path] | None = None) -> None:
        signing.sign(tmp_path / "f", Signer(key, tuple(chain)))
        with pytest.raises(SecurityError, match=words):
            signing.verify(tmp_path / "f", Trusted.load(trust or [pem]))

    refuse("not one for signing", root.issue("ada", key.public_key(), signs=False))
    refuse("do not lead to a root", good, Authority("site").certificate)
    refuse("its signature is wrong", root.issue("ada", new_ec().public_key()))
    rsa_key = rsa.generate_private_key(65537, 2048).public_key()
    refuse("kind of key", root.issue("ada", rsa_key))
    crl = tmp_path / "revoked.crl"
    crl.write_bytes(root.revoke(good))
    refuse("was revoked", good, trust=[pem, crl])
    crl.write_bytes(Authority("site").revoke(good))
    with pytest.raises(SecurityError, match="no trusted root has signed"):
        Trusted.load([pem, crl])


def test_keys_that_others_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_key(tmp_path / "k.pem", new_ec())
    path.chmod(0o640)
    with pytest.raises(SecurityError, match="others can read it"):
        load_signer(str(path))
    path.chmod(0o600)
    (tmp_path / "link.pem").symlink_to(path)
    with pytest.raises(SecurityError, match="is a symbolic link"):
        load_signer(str(tmp_path / "link.pem"))
    with pytest.raises(ConfigError, match="no identity of that name"):
        load_signer("nobody")
    for name, variable in [("job", "MPIDL_JOB_CERTIFICATE"), ("eve", "LOGNAME")]:
        write_identity(tmp_path / "keys" / name, Authority(), name)
        monkeypatch.setenv("MPIDL_KEYS", str(tmp_path / "keys"))
        monkeypatch.setenv(variable, name)
        assert load_signer("").name == name
        monkeypatch.delenv(variable)


def test_keys_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_private(tmp_path / "bad.pem", b"-----BEGIN PRIVATE KEY-----\nSECRET\n")
    with pytest.raises(SecurityError) as caught:
        load_signer(str(tmp_path / "bad.pem"))
    assert "SECRET" not in str(caught.value)
    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    with pytest.raises(SecurityError, match="damaged"):
        load_signer(str(write_private(tmp_path / "rsa.pem", pem)))
    locked = new_ec().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame")
    )
    write_private(tmp_path / "locked.pem", locked)
    with pytest.raises(SecurityError, match="nobody to ask"):
        load_signer(str(tmp_path / "locked.pem"))
    monkeypatch.setenv(
        "MPIDL_PASSPHRASE_FILE", str(write_private(tmp_path / "wrong", b"Open Sesame\n"))
    )
    with pytest.raises(SecurityError, match="passphrase is wrong") as caught:
        load_signer(str(tmp_path / "locked.pem"))
    assert "Sesame" not in str(caught.value)
    monkeypatch.setenv(
        "MPIDL_PASSPHRASE_FILE", str(write_private(tmp_path / "p", b"open sesame\n"))
    )
    assert "key=" not in repr(load_signer(str(tmp_path / "locked.pem")))


def test_everybody_in_the_site(site: Site, model: Path, tmp_path: Path) -> None:
    """Both ways with model-signing; jobs sign too, nodes cannot."""
    from model_signing import signing as theirs
    from model_signing import verifying

    root, trusted = site.folder / "site" / "root.pem", Trusted.load(["site"])
    for name, said in [("ada", "person:ada"), ("run-7", "job:run-7 of ada")]:
        written = signing.sign(model, load_signer(name))
        assert signing.verify(model, trusted).signatory.name == said
        verifying.Config().use_certificate_verifier(certificate_chain=[root]).verify(model, written)
        written.unlink()
    chain = site.keys("ada") / "signing-certificate.pem"
    plain = tmp_path / "plain.pem"
    write_key(plain, load_signer("ada").key)
    theirs.Config().use_certificate_signer(
        private_key=plain, signing_certificate=chain, certificate_chain=[root]
    ).sign(model, tmp_path / "theirs.sig")
    assert signing.verify(model, trusted, tmp_path / "theirs.sig").signatory.name == "person:ada"
    key = load_key(site.keys("node7") / "key.pem", PASSPHRASE)
    node = Signer(key, load_certificates(site.keys("node7") / "certificate.pem"))
    signing.sign(model, node, tmp_path / "node.sig")
    with pytest.raises(SecurityError, match="is not for sign"):
        signing.verify(model, trusted, tmp_path / "node.sig")


def test_revoked_in_the_site(own_site: Site, model: Path) -> None:
    signing.sign(model, load_signer("bob"))
    assert signing.verify(model, Trusted.load(["site"])).signatory.name == "person:bob"
    assert main(["keys", "revoke", "bob"]) == 0
    with pytest.raises(SecurityError, match="was revoked"):
        signing.verify(model, Trusted.load(["site"]))
