"""Signatures of files: ours and those of model-signing, and what is refused."""

from __future__ import annotations

import json
import os
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.cli.main import main
from mpidl.errors import ConfigError, MpidlError, SecurityError
from mpidl.security import signing
from mpidl.security.envelope import IN_TOTO, Envelope
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

FLIPS = int(os.environ.get("MPIDL_TEST_FLIPS", "150"))
CURVES = (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "a.bin").write_bytes(bytes(range(256)) * 50)
    (folder / "sub" / 'é"b').write_bytes(b"y")
    (folder / "sub" / "deep" / "empty").touch()
    (folder / "sub-z").write_bytes(b"sorts by parts, not by text")
    return folder


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return load_signer(str(write_key(tmp_path / "k.pem", new_ec())))


@pytest.fixture
def trusted(tmp_path: Path, signer: Signer) -> Trusted:
    return Trusted.load([tmp_path / "k.pub"])


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_model_signing_verifies_what_we_sign(model: Path, tmp_path: Path, curve: Any) -> None:
    from model_signing import verifying

    key = write_key(tmp_path / "k.pem", new_ec(curve))
    config = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "k.pub")
    written = signing.sign(model, load_signer(str(key)))
    config.verify(model, written)
    signing.sign(model / "a.bin", load_signer(str(key)), tmp_path / "a.sig")
    verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "k.pub").verify(
        model / "a.bin", tmp_path / "a.sig"
    )
    (model / "added").touch()
    with pytest.raises(ValueError, match="Extra files"):
        verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "k.pub").verify(
            model, written
        )


@pytest.mark.parametrize("kind", ["files", "blake2", "shards", "file alone"])
def test_we_verify_what_model_signing_signs(model: Path, tmp_path: Path, kind: str) -> None:
    from model_signing import hashing
    from model_signing import signing as theirs

    write_key(tmp_path / "k.pem", new_ec())
    how = hashing.Config()
    if kind == "blake2":
        how.use_file_serialization(hashing_algorithm="blake2")
    if kind == "shards":
        how.use_shard_serialization(shard_size=5000)
    path = model / "a.bin" if kind == "file alone" else model
    config = theirs.Config().use_elliptic_key_signer(private_key=tmp_path / "k.pem")
    config.set_hashing_config(how).sign(path, tmp_path / "m.sig")
    trusted = Trusted.load([tmp_path / "k.pub"])
    found = signing.verify(path, trusted, tmp_path / "m.sig")
    assert found.statement.subject[0].name == path.name
    content = bytearray((model / "a.bin").read_bytes())
    content[7000] ^= 1
    (model / "a.bin").write_bytes(content)
    with pytest.raises(SecurityError, match="has changed since it was signed"):
        signing.verify(path, trusted, tmp_path / "m.sig")


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


def test_what_differs_is_named(model: Path, signer: Signer, trusted: Trusted) -> None:
    signing.sign(model, signer)
    assert signing.verify(model, trusted).statement.digests.keys() == {
        "a.bin",
        'sub/é"b',
        "sub/deep/empty",
        "sub-z",
    }
    (model / "sub" / "x").write_bytes(b"1")
    with pytest.raises(SecurityError, match="was not there when") as caught:
        signing.verify(model, trusted)
    assert caught.value.where == str(model / "sub" / "x")
    (model / "sub" / "x").rename(model / "sub" / "deep" / "empty2")
    (model / "sub" / "deep" / "empty2").unlink()
    (model / "a.bin").unlink()
    with pytest.raises(SecurityError, match="is missing now"):
        signing.verify(model, trusted)
    (model / "a.bin").symlink_to("/etc/hostname")
    with pytest.raises(SecurityError, match="is a link"):
        signing.verify(model, trusted)
    with pytest.raises(SecurityError, match="is a link"):
        signing.sign(model, signer)


def test_unsigned_and_replaced(tmp_path: Path, signer: Signer, trusted: Trusted) -> None:
    path = tmp_path / "step-1.h5"
    path.write_bytes(b"1")
    with pytest.raises(SecurityError, match=r"is not signed: there is no step-1\.h5\.sig"):
        signing.verify(path, trusted)
    signing.sign(path, signer)
    with signing.admitted(path, trusted):
        pass
    with pytest.raises(SecurityError, match="replaced or changed"), signing.admitted(path, trusted):
        path.with_name("new").write_bytes(b"2")
        path.with_name("new").replace(path)
    with pytest.raises(SecurityError, match="has changed"), signing.admitted(path, trusted):
        raise AssertionError("used before it was verified")


def test_every_flipped_bit_is_refused(model: Path, tmp_path: Path) -> None:
    authority = Authority()
    folder = write_identity(tmp_path / "ada", authority, "ada")
    write_key(tmp_path / "k.pem", new_ec())
    trusted = Trusted.load([tmp_path / "k.pub", authority.write(tmp_path / "root.pem")])
    draw = random.Random(1)
    for identity in (folder, tmp_path / "k.pem"):
        path = signing.sign(model, load_signer(str(identity)))
        good = path.read_bytes()
        for _ in range(FLIPS):
            at = draw.randrange(8 * len(good))
            bad = bytearray(good)
            bad[at // 8] ^= 1 << at % 8
            path.write_bytes(bad)
            with pytest.raises(SecurityError):
                signing.verify(model, trusted)
        path.write_bytes(good)
        signing.verify(model, trusted)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_other_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(SecurityError):
        Envelope.decode(raw, "x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_changed_structures_are_refused(data: st.DataObject) -> None:
    signer = Signer(ed25519.Ed25519PrivateKey.generate())
    envelope = signer.sign(b'{"_type": 1}', IN_TOTO)
    tree = json.loads(envelope.encode())
    node, path = tree, []
    while isinstance(node, (dict, list)) and node and (data.draw(st.booleans()) or not path):
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else [0]))
        path.append((node, key))
        node = node[key]
    holder, key = path[-1]
    value = data.draw(json_values.filter(lambda value: value not in (node, None, [])))
    holder[key] = value
    from mpidl.security.statement import parse

    trusted = Trusted({envelope.hint: signer.key.public_key()})
    with pytest.raises(SecurityError):
        found = Envelope.decode(json.dumps(tree).encode(), "x")
        trusted.verify(found, IN_TOTO, "x")
        parse(found.payload, "x")


def test_payloads_are_checked_after_their_signature(tmp_path: Path, signer: Signer) -> None:
    from mpidl.security.statement import describe, parse

    (tmp_path / "f").write_bytes(b"1")
    tree = json.loads(describe(tmp_path / "f", signature=tmp_path / "f.sig"))
    for change, words in [
        (lambda t: t["predicate"]["resources"].append(t["predicate"]["resources"][0]), "twice"),
        (lambda t: t["predicate"]["resources"][0].update(digest="0" * 64), "do not agree"),
        (lambda t: t.update(predicateType="other"), "no statement"),
        (lambda t: t["predicate"]["serialization"].update(hash_type="md5"), "no statement"),
        (lambda t: t["predicate"]["serialization"].update(shard_size=0), "no statement"),
    ]:
        changed = json.loads(json.dumps(tree))
        change(changed)
        with pytest.raises(SecurityError, match=words):
            parse(json.dumps(changed).encode(), "x")


def test_a_signature_of_something_else(tmp_path: Path, signer: Signer, trusted: Trusted) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"1")
    signature = signing.sign(path, signer)
    envelope = Envelope.decode(signature.read_bytes().strip(), "x")
    other = signer.sign(envelope.payload, "application/json")
    signature.write_bytes(other.encode())
    with pytest.raises(SecurityError, match="of something else"):
        signing.verify(path, trusted)


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


def test_commands(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority()
    monkeypatch.setenv("MPIDL_KEYS", str(tmp_path / "keys"))
    write_identity(tmp_path / "keys" / "ada", authority, "ada")
    root = str(authority.write(tmp_path / "root.pem"))
    assert main(["sign", str(model), "--identity", "ada", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signature"] == str(model / "model.sig")
    assert main(["verify", str(model), "--trusted", root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signatory"] == "ada"
    assert main(["verify", str(model)]) == 1
    assert "nobody is named who is trusted" in capsys.readouterr().err
    site = tmp_path / "security.toml"
    site.write_text(f'[security]\ntrusted = ["{root}"]\nidentity = "ada"\n')
    monkeypatch.setenv("MPIDL_SECURITY", str(site))
    assert main(["sign", str(model / "a.bin")]) == 0
    assert main(["verify", str(model / "a.bin")]) == 0
    (model / "a.bin").write_bytes(b"other")
    assert main(["verify", str(model / "a.bin")]) == 1
    assert "has changed since it was signed" in capsys.readouterr().err
    site.write_text("[security]\nrequire_signatures = true\n")
    assert main(["verify", str(model)]) == 1
    assert "nobody is trusted" in capsys.readouterr().err
    site.write_text("trusted = []\n")
    with pytest.raises(MpidlError, match="has to be one section"):
        from mpidl.security.section import site_security

        site_security()
