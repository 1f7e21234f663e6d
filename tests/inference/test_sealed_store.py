"""Sealed predictions: filled by all ranks, gone on with, and never plain on the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpidl.comm.context import init
from mpidl.data.hdf5 import open_file
from mpidl.errors import DataError, SecurityError
from mpidl.inference.output import convert
from mpidl.inference.sealed_store import SealedStore
from mpidl.inference.store import Notes, OtherPrediction, Store
from mpidl.security import sealing_keys
from mpidl.security.sealed_file import is_sealed, read_bytes
from tests.inference.test_store import LAYOUT, fill
from tests.security.sealing.conftest import keys as keys

SECRET = Notes({"task": "classification"}, ("influenza", "b", "c"), {"label": "kilopascal"})
SEALED = replace(LAYOUT, seal_for=("alice",), notes=SECRET)


def test_a_sealed_prediction_is_that_of_the_plain_file(tmp_path: Path, keys: Path) -> None:
    plain = Store(tmp_path / "plain.h5", replace(LAYOUT, notes=SECRET), init(), restart=False)
    fill(plain, [0, 1, 2, 3, 4])
    plain.close()
    plain.finish(overwrite=False)
    path = tmp_path / "sealed.h5"
    first = SealedStore(path, SEALED, init(), restart=False)
    fill(first, [3, 1])
    first.close()
    sealing_keys.forget()  # as another process
    second = SealedStore(path, SEALED, init(), restart=False)
    assert second.pending.tolist() == [0, 2, 4]
    fill(second, [4, 0, 2])
    second.close()
    raw = second.path.read_bytes()
    assert b"influenza" not in raw and b"kilopascal" not in raw
    labels = np.arange(23, dtype="<i8")
    assert not any(labels[low : low + 2].tobytes() in raw for low in range(22))
    assert b"influenza" in (tmp_path / "plain.h5").read_bytes()
    assert second.sums().tolist() == [5.0, 10.0]
    second.finish(overwrite=False)
    assert is_sealed(path)
    left = sorted(file.name for file in tmp_path.iterdir() if file.is_file())
    assert left == ["plain.h5", "sealed.h5"]
    with open_file(tmp_path / "plain.h5") as a, open_file(path) as b:
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name][...], b[name][...])
        told = set(a.attrs) - {"prediction"}  # it says whether it is sealed
        assert {key: a.attrs[key] for key in told} == {key: b.attrs[key] for key in told}
    compare_tables(tmp_path)


def compare_tables(folder: Path) -> None:
    """Tables of a sealed file are sealed, and those of the plain one."""
    for suffix in (".csv", ".npz"):
        for name, names in (("plain", ()), ("sealed", ("alice",))):
            source = folder / f"{name}.h5"
            columns = ["key", "label", "probability"]
            made = source.with_suffix(suffix)
            convert(source, made, columns, overwrite=False, seal_for=names)
        assert is_sealed(folder / f"sealed{suffix}")
        plain = (folder / f"plain{suffix}").read_bytes()
        assert read_bytes(folder / f"sealed{suffix}") == plain


def test_chunks_fit_at_their_place_only(tmp_path: Path, keys: Path) -> None:
    store = SealedStore(tmp_path / "p.h5", SEALED, init(), restart=False)
    fill(store, [0, 1, 2, 3, 4])
    store.close()
    with open_file(store.path, "r+") as file:
        for name in ("label", "probability"):
            file[name][0:5], file[name][5:10] = file[name][5:10], file[name][0:5]
        file["seals"][0], file["seals"][1] = file["seals"][1], file["seals"][0]
    for finish in (lambda: store.finish(overwrite=True), store.sums):
        with pytest.raises(DataError, match="is not authentic"):
            finish()
    assert not (tmp_path / "p.h5").exists()


def test_plain_and_sealed_runs_do_not_mix(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.h5"
    for first, second in ((LAYOUT, SEALED), (SEALED, LAYOUT)):
        for layout, restart in ((first, True), (second, False)):
            kind = SealedStore if layout.seal_for else Store
            if restart:
                kind(path, layout, init(), restart=True).close()
                continue
            with pytest.raises(OtherPrediction, match="another sealed"):
                kind(path, layout, init(), restart=False)
    SealedStore(path, SEALED, init(), restart=True).close()
    monkeypatch.setenv("MPIDL_KEYS", str(keys / "bob"))
    sealing_keys.forget()
    with pytest.raises(SecurityError, match="sealed for alice"):
        SealedStore(path, SEALED, init(), restart=False)
