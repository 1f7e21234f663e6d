"""Provenance bundles: what is in them, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.comm.context import init
from mpidl.errors import CheckpointError, SecurityError
from mpidl.security.envelope import IN_TOTO
from mpidl.security.signer import Signer
from mpidl.security.trusted import Trusted
from mpidl.train import checkpoint as ckpt
from mpidl.train.origin import Origin
from mpidl.train.provenance import describe, open_bundle, seal
from tests.security.authority import EXAMPLES, new_ec

FLIPS = int(os.environ.get("MPIDL_TEST_FLIPS", "150"))
KEY = new_ec()
SIGNER = Signer(KEY, name="ada")
TRUSTED = Trusted({SIGNER.sign(b"", "").hint: KEY.public_key()})
ORIGIN = Origin(2, "c" * 64, "", {"/data": "d" * 64}, {"mpidl": "1.0", "numpy": "2.0"})
VALUES = np.arange(10, dtype=np.float32)


def save(folder: Path, *origins: Origin) -> Path:
    meta = ckpt.Meta(
        ckpt.VERSION,
        7,
        0,
        7,
        {"train": {"seed": 3}},
        {},
        {"a": (0, [2, 3]), "b": (6, [4])},
        {},
        None,
        origins=origins,
    )
    buffers = {"parameters": VALUES, "state": VALUES[:2]}
    return ckpt.save(folder, meta, buffers, init(), keep=1, best=False)


def test_what_is_in_a_bundle(tmp_path: Path) -> None:
    path = save(tmp_path, ORIGIN)
    (tmp_path / "b.json").write_bytes(seal(describe(path), SIGNER))
    found, signatory = open_bundle(tmp_path / "b.json", TRUSTED)
    assert signatory.name.startswith("key ") and found.jobs == (ORIGIN,)
    assert found.subject[0].name == path.name
    assert found.subject[0].digest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.arrays == {
        "a": hashlib.sha256(VALUES[:6].tobytes()).hexdigest(),
        "b": hashlib.sha256(VALUES[6:].tobytes()).hexdigest(),
        "state": hashlib.sha256(VALUES[:2].tobytes()).hexdigest(),
    }
    assert (found.chosen.step, found.chosen.configuration) == (7, {"train": {"seed": 3}})
    definition = found.predicate.buildDefinition
    assert {(one.name, one.digest.sha256) for one in definition.resolvedDependencies} == {
        ("mpidl", "c" * 64),
        ("/data", "d" * 64),
    }
    statement = json.loads(msgspec.json.encode(found))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"


def test_a_checkpoint_without_an_origin(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not say what it was made from"):
        describe(save(tmp_path))


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    path, draw = tmp_path / "b.json", random.Random(1)
    good = seal(describe(save(tmp_path, ORIGIN)), SIGNER)
    for _ in range(FLIPS):
        at = draw.randrange(8 * len(good))
        bad = bytearray(good)
        bad[at // 8] ^= 1 << at % 8
        path.write_bytes(bad)
        with pytest.raises(SecurityError):
            open_bundle(path, TRUSTED)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["_type", "subject", "predicate", "predicateType"]),
                inner,
                max_size=4,
            )
        ),
    ).map(lambda tree: json.dumps(tree).encode())
)
def test_signed_payloads_of_another_form(payload: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b.json"
        path.write_bytes(SIGNER.sign(payload, IN_TOTO).encode())
        with pytest.raises(SecurityError, match="is no provenance"):
            open_bundle(path, TRUSTED)


def test_differences_are_said() -> None:
    now = Origin(4, "e" * 64, "", {"/data": "f" * 64}, {"mpidl": "1.0", "cpu": "v3"})
    assert ORIGIN.differences(now) == [
        f"the code: {'c' * 16}, now {'e' * 16}",
        "the data: /data",
        "ranks: 2, now 4",
        "cpu: none, now v3",
        "numpy: 2.0, now none",
    ]
    moved = msgspec.structs.replace(ORIGIN, data={"/elsewhere": "d" * 64})
    assert ORIGIN.differences(moved) == []
