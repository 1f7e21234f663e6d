"""Signatures of files: ours and those of model-signing, and what is refused."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.cli.main import main
from mpidl.errors import MpidlError, SecurityError
from mpidl.security import signing
from mpidl.security.envelope import IN_TOTO, Envelope
from mpidl.security.signer import Signer, load_signer
from mpidl.security.trusted import Trusted
from tests.security.authority import (
    EXAMPLES,
    Authority,
    new_ec,
    write_identity,
    write_key,
)

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


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_other_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(SecurityError):
        Envelope.decode(raw, "x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(max_examples=EXAMPLES, deadline=None)
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


def test_a_name_that_comes_twice(tmp_path: Path, signer: Signer) -> None:
    text = signer.sign(b"{}", IN_TOTO).encode().decode()
    Envelope.decode(text.encode(), "x")
    for name in ("payload", "sig", "keyid", "mediaType"):
        twice = text.replace(f'"{name}":', f'"{name}":"","{name}":', 1)
        with pytest.raises(SecurityError, match="no signature bundle"):
            Envelope.decode(twice.encode(), "x")


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
