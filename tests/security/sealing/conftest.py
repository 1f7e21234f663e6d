"""Two identities, and files sealed for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mpidl.security import sealed_file, sealing_keys
from tests.security.sealing.identities import make_identity


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of alice and bob, whose keys this process has."""
    folder = tmp_path / "keys"
    make_identity(folder, "alice")
    make_identity(folder, "bob")
    monkeypatch.setenv("MPIDL_KEYS", str(folder))
    sealing_keys.forget()
    yield folder
    sealing_keys.forget()
    sealed_file.require(False)
