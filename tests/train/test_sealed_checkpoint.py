"""Sealed checkpoints: what they hold, who reads them, and what is refused."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mpidl.errors import CheckpointError, SecurityError
from mpidl.optim import RunState
from mpidl.security import sealing
from mpidl.security.sealed_file import is_sealed
from mpidl.train import checkpoint as ckpt
from tests.security.sealing.conftest import keys as keys
from tests.train.test_checkpoint import meta

FLIPS = int(os.environ.get("MPIDL_TEST_FLIPS", "40"))


def save(folder: Path, step: int, context: Any, *names: str) -> Path:
    buffers = {
        "parameters": np.random.default_rng(step).normal(size=30_011).astype(np.float32),
        "optimizer.momentum": np.arange(30_011.0),
    }
    state = RunState({"a": np.arange(6).reshape(2, 3)}, {"mine": np.arange(7.0)})
    return ckpt.save(
        folder, meta(step), buffers, context, keep=5, best=True, state=state, seal_for=names
    )


def test_sealed_checkpoints_hold_what_plain_ones_do(
    tmp_path: Path, context: Any, keys: Path
) -> None:
    found = [save(tmp_path / name, 3, context, *who) for name, who in (("p", ()), ("s", ["bob"]))]
    assert [is_sealed(path) for path in found] == [False, True]
    plain, sealed = (ckpt.read(path) for path in found)
    assert set(plain.meta.parts) == set(sealed.meta.parts)
    assert msgspec.structs.replace(plain.meta, parts=sealed.meta.parts) == sealed.meta
    for name, array in plain.buffers.items():
        np.testing.assert_array_equal(array, sealed.buffers[name])
    np.testing.assert_array_equal(plain.state.shared["a"], sealed.state.shared["a"])
    own = ckpt.read_own(found[1], sealed.meta, 0)
    np.testing.assert_array_equal(own["mine"], np.arange(7.0))
    assert ckpt.read(found[1].with_name(ckpt.BEST)).meta.step == 3
    sealing.unseal_file(found[1], tmp_path / "plain.h5")
    assert ckpt.read(tmp_path / "plain.h5").meta == sealed.meta


def test_every_flipped_bit_is_noticed(tmp_path: Path, context: Any, keys: Path) -> None:
    path = save(tmp_path, 1, context, "alice")
    raw, rng = path.read_bytes(), random.Random(3)
    for _ in range(FLIPS):
        changed = bytearray(raw)
        changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises((CheckpointError, SecurityError)):
            ckpt.read(path)


def test_a_damaged_one_is_passed_over_and_a_foreign_one_is_not(
    tmp_path: Path, context: Any, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, context, "alice")
    path = save(tmp_path, 2, context, "alice")
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 1
    path.write_bytes(raw)
    warnings: list[str] = []
    assert ckpt.load_latest(tmp_path, warnings.append).meta.step == 1
    assert "not authentic" in warnings[0]
    from mpidl.security import sealing_keys

    monkeypatch.setenv("MPIDL_KEYS", str(keys / "bob"))
    sealing_keys.forget()
    with pytest.raises(SecurityError, match="sealed for alice"):
        ckpt.load_latest(tmp_path, warnings.append)


def test_nothing_is_left_of_one_that_could_not_be_written(
    tmp_path: Path, context: Any, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, context, "alice")
    monkeypatch.setattr("mpidl.train.checkpoint.sealed.compute_digest", lambda array: 1 / 0)
    with pytest.raises(CheckpointError, match="could not be written"):
        save(tmp_path, 2, context, "alice")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="could not be written"):
        save(tmp_path, 2, context, "nobody")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [
        *(["best.h5"] if (tmp_path / "best.h5").exists() else []),
        "step-00000001.h5",
    ] or sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [
        "best.h5",
        "step-00000001.h5",
    ]
    assert ckpt.load_latest(tmp_path, print).meta.step == 1
