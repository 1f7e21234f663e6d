"""`mpidl seal`, `unseal`, `rewrap`; and shard, train and predict on sealed files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpidl.data.hdf5 import open_file
from mpidl.security import sealing_keys
from mpidl.security.sealed_file import is_sealed
from mpidl.security.sealed_format import ROOM
from tests.cli.test_data_commands import CONFIG, Run, series
from tests.cli.test_data_commands import mpidl as mpidl
from tests.security.sealing.conftest import keys as keys
from tests.security.sealing.identities import make_identity


def test_a_data_set_is_sealed_opened_and_handed_on(tmp_path: Path, mpidl: Run, keys: Path) -> None:
    np.savez(tmp_path / "raw.npz", **series(80))
    folder, out = tmp_path / "data", tmp_path / "out"
    assert mpidl("shard", tmp_path / "raw.npz", "--label", "y", "--out", folder)[0] == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    status, found, _ = mpidl("seal", folder, "--for", "alice", "--for", "bob")
    assert status == 0 and len(found["sealed"]) == len(before) and found["unchanged"] == 0
    assert all(is_sealed(path) for path in folder.iterdir())
    assert mpidl("seal", folder, "--for", "alice")[1] == {"sealed": [], "unchanged": len(before)}
    assert len(mpidl("unseal", folder, "--check")[1]["checked"]) == len(before)
    assert mpidl("unseal", folder, "--out", out)[0] == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    make_identity(keys, "carol")
    header = (folder / "manifest.json").read_bytes()[:ROOM]
    (folder / "manifest.json.rewrap").write_bytes(header)  # as a killed job leaves it
    status, found, err = mpidl("rewrap", folder, "--remove", "bob", "--add", "carol")
    assert len(found["recipients"]) == len(before)
    assert status == 0 and "bob may have kept the data key" in err
    assert set(map(tuple, found["recipients"].values())) == {("alice", "carol")}
    status, _, err = mpidl("rewrap", folder, "--remove", "alice", "--new-key")
    assert status == 0 and "kept" not in err
    assert mpidl("look", folder)[0] == 0
    assert mpidl("look", folder / "shard-00000.h5")[0] == 0


def test_what_is_asked_for_must_be_possible(tmp_path: Path, mpidl: Run, keys: Path) -> None:
    (tmp_path / "a").write_bytes(b"text")
    for arguments, words in (
        (("seal", tmp_path / "a", "--for", "nobody"), "no sealing-certificate of 'nobody'"),
        (("seal", tmp_path / "b", "--for", "alice"), "does not exist"),
        (("rewrap", tmp_path / "a"), "nothing is to be changed"),
        (("rewrap", tmp_path / "b", "--add", "bob"), "does not exist"),
    ):
        status, _, err = mpidl(*arguments)
        assert status == 1 and words in err
    assert mpidl("unseal", tmp_path / "a", "--check")[1] == {"checked": [], "not_sealed": 1}
    assert (tmp_path / "a").read_bytes() == b"text"


def test_a_run_on_sealed_data_is_the_run_on_plain_data(
    tmp_path: Path, mpidl: Run, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "raw.npz", **series(80))
    values = []
    for name, seal in (("plain", ""), ("sealed", '[security]\nseal_for = ["alice"]')):
        folder = tmp_path / name
        more = ["--seal-for", "alice"] if seal else []
        data = folder / "data"
        given = ("shard", tmp_path / "raw.npz", "--label", "y", "--out", data, *more)
        assert mpidl(*given)[0] == 0
        text = CONFIG.format(folder=folder, model="mlp", options="", epochs=2) + seal
        (folder / "run.toml").write_text(text)
        status, _, err = mpidl("train", folder / "run.toml")
        assert status == 0, err
        status, found, _ = mpidl("predict", folder / "run", data, "--out", folder / "p.h5")
        assert status == 0 and found["samples"] == 80
        written = [folder / "p.h5", *(folder / "run" / "checkpoints").iterdir(), *data.iterdir()]
        assert all(is_sealed(path) == bool(seal) for path in written)
        with open_file(folder / "p.h5") as file:
            values.append(file["probability"][...])
    np.testing.assert_array_equal(*values)
    more = "train.epochs=3", "--resume"
    assert mpidl("train", folder / "run.toml", "--set", *more)[0] == 0
    monkeypatch.setenv("MPIDL_KEYS", str(keys / "bob"))
    sealing_keys.forget()
    for command in (
        ("evaluate", folder / "run", "--data", folder / "data"),
        ("look", folder / "data"),
        ("predict", folder / "run", folder / "data", "--out", folder / "q.h5"),
    ):
        status, _, err = mpidl(*command)
        assert status == 1 and "is sealed for alice" in err


def test_plain_files_in_place_of_sealed_ones_are_refused(
    tmp_path: Path, mpidl: Run, keys: Path
) -> None:
    np.savez(tmp_path / "raw.npz", **series(80))
    for name, more in (("data", []), ("other", ["--seal-for", "alice"])):
        given = ("shard", tmp_path / "raw.npz", "--label", "y", "--out", tmp_path / name, *more)
        assert mpidl(*given)[0] == 0
    config = tmp_path / "run.toml"
    config.write_text(
        CONFIG.format(folder=tmp_path, model="mlp", options="", epochs=1)
        + '[security]\nseal_for = ["alice"]\nrequire_sealed = true'
    )
    status, _, err = mpidl("train", config)
    assert status == 1 and "manifest.json: is not sealed" in err
    sealed = ("--set", f"data.train={tmp_path / 'other'}")
    assert mpidl("train", config, *sealed)[0] == 0
    checkpoints = tmp_path / "run" / "checkpoints"
    assert mpidl("unseal", checkpoints, "--out", tmp_path / "opened")[0] == 0
    for path in (tmp_path / "opened").iterdir():
        path.replace(checkpoints / path.name)
    for required in ("true", "false"):
        more = ("--set", f"security.require_sealed={required}", "--set", "train.epochs=2")
        status, _, err = mpidl("train", config, *sealed, *more, "--resume")
        assert status == 1 and "is not sealed" in err
