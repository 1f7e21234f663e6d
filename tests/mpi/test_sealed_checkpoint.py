"""Sealed checkpoints of several ranks: rank 0 alone writes, and needs the recipients."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.errors import CheckpointError
from mpidl.optim import RunState
from mpidl.security import sealing_keys
from mpidl.security.sealed_file import is_sealed
from mpidl.train import checkpoint as ckpt
from tests.security.sealing.identities import make_identity
from tests.train.test_checkpoint import meta

pytestmark = pytest.mark.mpi


@pytest.fixture
def folder(context: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that all ranks see, with keys of alice."""
    made = Path(context.on_root(tempfile.mkdtemp, "making a folder", str))
    context.on_root(lambda: bool(make_identity(made / "keys", "alice")), "making keys")
    sealing_keys.use(made / "keys")
    monkeypatch.setenv("MPIDL_SITE", str(made / "no site"))
    yield made
    sealing_keys.forget()
    context.barrier()
    context.on_root(lambda: shutil.rmtree(made), "cleaning up")


def save(folder: Path, context: Any, *names: str) -> Path:
    rank = context.rank
    own = {"all": np.arange(rank + 2.0), "wide": np.full(200_000, rank, np.int16)}
    if rank == 1:
        own["one"] = np.full((2, 2), 7)
    buffers = {"parameters": np.arange(50_000, dtype=np.float32)}
    state = RunState({"s": np.ones(3)}, own)
    return ckpt.save(
        folder, meta(1), buffers, context, keep=2, best=False, state=state, seal_for=names
    )


def test_what_each_rank_has_is_written_by_the_first(folder: Path, context: Any) -> None:
    path = save(folder / "run", context, "alice")
    assert is_sealed(path)
    loaded = ckpt.load_for(context, lambda: ckpt.read(path), "reading", own=True)
    np.testing.assert_array_equal(loaded.buffers["parameters"], np.arange(50_000))
    np.testing.assert_array_equal(loaded.state.own["all"], np.arange(context.rank + 2.0))
    assert (loaded.state.own["wide"] == context.rank).all()
    assert ("one" in loaded.state.own) == (context.rank == 1)


@pytest.mark.parametrize("where", ["digest", "create"])
def test_an_error_on_the_first_rank_reaches_all(
    folder: Path, context: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Also while the others send what is theirs: nobody waits for ever."""
    with monkeypatch.context() as patch:
        if context.is_root and where == "digest":
            patch.setattr("mpidl.train.checkpoint.sealed.compute_digest", lambda array: 1 / 0)
        with pytest.raises(CheckpointError, match="could not be written"):
            save(folder / "run", context, "alice" if where == "digest" else "nobody")
    left = context.on_root(lambda: len([*(folder / "run").glob("*.h5*")]), "looking", int)
    assert left == 0
    assert is_sealed(save(folder / "run", context, "alice"))
