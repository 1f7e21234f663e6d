"""Checkpoints on one rank: what is kept, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mpidl.data import hdf5
from mpidl.errors import CheckpointError
from mpidl.optim import RunState
from mpidl.train import checkpoint as ckpt
from mpidl.train.checkpoint.format import compute_digest


def meta(step: int) -> ckpt.Meta:
    return ckpt.Meta(ckpt.VERSION, step, 0, step, {}, {}, {}, {"accuracy": 0.5}, 0.5)


def save(folder: Path, step: int, context: Any, *, keep: int = 2, best: bool = False) -> Path:
    buffers = {
        "parameters": np.full(1001, step, np.float32),
        "optimizer.momentum": np.arange(1001.0),
    }
    return ckpt.save(folder, meta(step), buffers, context, keep=keep, best=best)


def test_round_trip_and_retention(tmp_path: Path, context: Any) -> None:
    for step in range(1, 6):
        save(tmp_path, step, context, best=step == 2)
    assert [path.name for path in ckpt.list_checkpoints(tmp_path)] == [
        "step-00000005.h5",
        "step-00000004.h5",
    ]
    assert ckpt.read(tmp_path / ckpt.BEST).meta.step == 2
    newest = ckpt.load_latest(tmp_path, print)
    assert newest.meta.step == 5 and (newest.buffers["parameters"] == 5).all()
    np.testing.assert_array_equal(newest.buffers["optimizer.momentum"], np.arange(1001.0))


@pytest.mark.parametrize("place", range(12))
def test_any_flipped_byte_is_noticed_or_harmless(tmp_path: Path, context: Any, place: int) -> None:
    """A byte flipped anywhere either is found, or lies where it changes nothing that is loaded."""
    path = save(tmp_path, 3, context)
    before = ckpt.read(path)
    raw = bytearray(path.read_bytes())
    raw[(len(raw) - 1) * place // 11] ^= 0x10
    path.write_bytes(raw)
    try:
        after = ckpt.read(path)
    except CheckpointError as error:
        assert str(path) in str(error) and error.remedy
        return
    except Exception as error:
        assert "HDF5" in str(error) or "dataset" in str(error), error
        return
    assert after.meta == before.meta
    for name, array in before.buffers.items():
        assert after.buffers[name].tobytes() == array.tobytes()


def test_an_unfinished_file_is_not_a_checkpoint(tmp_path: Path, context: Any) -> None:
    path = save(tmp_path, 3, context)
    path.rename(path.with_name(path.name + ".partial"))
    with pytest.raises(CheckpointError, match="no usable"):
        ckpt.load_latest(tmp_path, print)
    path.write_bytes(b"")
    said: list[str] = []
    with pytest.raises(CheckpointError, match="no usable"):
        ckpt.load_latest(tmp_path, said.append)
    assert said and "passing over" in said[0]


def test_metadata_grows_beyond_what_an_attribute_can_hold(tmp_path: Path, context: Any) -> None:
    """As many parts as 64 ranks with a compressor have: attributes of HDF5 end at 64 KiB."""
    state = RunState(
        own={
            f"strategy.compression.residual:bucket {i} (dense.w)": np.full(3, i) for i in range(600)
        }
    )
    path = ckpt.save(
        tmp_path, meta(1), {"parameters": np.ones(5)}, context, keep=2, best=False, state=state
    )
    found = ckpt.read(path)
    assert len(found.meta.parts) == 601 and len(msgspec.json.encode(found.meta)) > 1 << 16
    own = ckpt.read_own(path, found.meta, 0)
    np.testing.assert_array_equal(own["strategy.compression.residual:bucket 7 (dense.w)"], [7] * 3)


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path: Path, context: Any) -> None:
    """Its parameters have other names; the metadata of version 1 is an attribute."""
    path, values = tmp_path / "step-00000007.h5", np.arange(5.0)
    old = msgspec.structs.replace(
        meta(7), version=1, parts=(ckpt.Part("parameters", 0, 5, compute_digest(values)),)
    )
    tree = msgspec.to_builtins(old)
    for name in ("ranks", "shared", "own"):
        del tree[name]
    encoded = msgspec.json.encode(tree)
    with hdf5.open_file(path, "w") as file:
        file["parameters"] = values
        file.attrs["meta"] = np.frombuffer(encoded, np.uint8)
        file.attrs["meta_sha256"] = hashlib.sha256(encoded).hexdigest()
    with pytest.raises(
        CheckpointError, match="has version 1, this mpidl reads version 4"
    ) as caught:
        ckpt.load_latest(tmp_path, print)
    assert "use the mpidl that wrote it" in caught.value.remedy
