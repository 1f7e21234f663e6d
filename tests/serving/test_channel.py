"""The channel: requests and answers as files, whatever the files are."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.errors import ConfigError, DataError, PlatformError
from mpidl.serving.channel import MODELS, _read, check_archive, opened
from mpidl.serving.errors import ServingError
from mpidl.serving.folder_client import FolderClient, find_channel
from mpidl.serving.query import ask
from mpidl.serving.settings import ServerSettings
from tests.serving.helpers import Made, rows_of, with_server


def beside_channel(
    folder: Path, test: Callable[[Made, Path], Awaitable[None]], **options: Any
) -> None:
    """Run a test beside a server that answers the files of folder/channel."""

    async def run(made: Made) -> None:
        async with opened(made.server, folder / "channel"):
            await test(made, folder / "channel")

    with_server(folder, run, ranks=2, max_batch_size=4, **options)


async def gone(path: Path) -> None:
    """Wait until a request is answered."""
    while path.exists():
        await asyncio.sleep(0.02)


def put(folder: Path, name: str = "a", **arrays: np.ndarray) -> Path:
    path = folder / "in" / "m" / f"{name}.npz"
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez(file, **arrays)
    partial.rename(path)
    return path


def error_of(folder: Path, name: str = "a") -> str:
    found: str = json.loads((folder / "out" / "m" / f"{name}.json").read_text())["error"]
    return found


@pytest.mark.parametrize("count", [1, 4, 23])
def test_a_file_is_answered_whole_and_in_order(tmp_path: Path, count: int) -> None:
    async def test(made: Made, folder: Path) -> None:
        await gone(put(folder, x=rows_of(count)))
        with np.load(folder / "out" / "m" / "a.npz") as archive:
            np.testing.assert_array_equal(archive["sum"], rows_of(count).sum(axis=1))
        assert max(made.link.batches) <= 4 and sum(made.link.batches) == count
        assert folder.stat().st_mode & 0o777 == 0o700

    beside_channel(tmp_path, test)


def test_a_client_asks_by_files(tmp_path: Path) -> None:
    async def test(made: Made, folder: Path) -> None:
        client = FolderClient(folder, 10)
        (model,) = client.models()
        assert model.name == "m" and model.ranks == 2
        found = await asyncio.to_thread(ask, lambda: client, model, {"x": rows_of(30)}, 1)
        np.testing.assert_array_equal(found["sum"], rows_of(30).sum(axis=1))
        assert len(made.link.batches) == 8  # the server cuts one file into batches
        with pytest.raises(ConfigError, match="another shape"):
            await asyncio.to_thread(client.infer, "m", {"x": np.zeros((1, 5))})
        assert [path for path in folder.rglob("*") if path.suffix == ".npz"] == []

    beside_channel(tmp_path, test)


def test_what_a_path_is(tmp_path: Path) -> None:
    """A channel that a server makes later, an endpoint, and neither."""
    later = tmp_path / "later"

    def make() -> None:
        later.mkdir()
        (later / MODELS).touch()

    timer = threading.Timer(0.2, make)
    timer.start()
    assert find_channel(later, 20)
    timer.join()
    (tmp_path / "run").mkdir()
    assert not find_channel(tmp_path / "run", 0)
    (tmp_path / "run" / "endpoint.json").touch()
    for path in (tmp_path / "run", tmp_path / "run" / "endpoint.json"):
        assert not find_channel(path, 1000)  # comes at once


def test_a_client_without_a_server_is_told(tmp_path: Path) -> None:
    client = FolderClient(tmp_path, 0.1)
    with pytest.raises(DataError, match=MODELS):
        client.models()
    (tmp_path / MODELS).write_text('{"a": 1}')
    with pytest.raises(DataError, match="not what a server writes"):
        client.models()
    for kind in ("in", "out"):
        (tmp_path / kind / "m").mkdir(parents=True)
    with pytest.raises(PlatformError, match=r"no server answers within 0.1 s"):
        client.infer("m", {"x": rows_of(1)})
    assert list((tmp_path / "in" / "m").iterdir()) == []


def test_files_that_are_none_are_answered_with_an_error(tmp_path: Path) -> None:
    async def test(made: Made, folder: Path) -> None:
        names = {
            "empty": b"",
            "torn": put(folder, "t", x=rows_of(3)).read_bytes()[:-40],
            "text": b"no archive",
        }
        for name, content in names.items():
            path = folder / "in" / "m" / f"{name}.npz"
            path.with_suffix(".partial").write_bytes(content)
            path.with_suffix(".partial").rename(path)
            await gone(path)
            assert "cannot be read" in error_of(folder, name)
        (tmp_path / "secret.npz").write_bytes(b"secret")
        link = folder / "in" / "m" / "link.npz"
        link.symlink_to(tmp_path / "secret.npz")
        while link.is_symlink():
            await asyncio.sleep(0.02)
        assert "it is a link" in error_of(folder, "link")
        assert (tmp_path / "secret.npz").exists()
        await gone(put(folder, "shape", x=np.zeros((2, 9))))
        assert "another shape" in error_of(folder, "shape")
        await gone(put(folder, "name", y=np.zeros((2, 2)), z=np.zeros(2)))
        assert "has no array 'x'" in error_of(folder, "name")
        await gone(put(folder, "good", x=rows_of(2)))
        assert (folder / "out" / "m" / "good.npz").exists()

    beside_channel(tmp_path, test)


def test_a_compressed_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    async def test(made: Made, folder: Path) -> None:
        path = folder / "in" / "m" / "bomb.npz"
        with open(path.with_suffix(".partial"), "wb") as file:
            np.savez_compressed(file, x=np.zeros((1 << 18, 2), np.float32))
        assert path.with_suffix(".partial").stat().st_size < 10_000
        path.with_suffix(".partial").rename(path)
        await gone(path)
        assert "max_request_bytes" in error_of(folder, "bomb")

    beside_channel(tmp_path, test, server=ServerSettings(max_request_bytes=1 << 16))


def test_requests_stay_where_the_server_stops(tmp_path: Path) -> None:
    """The next server answers them."""

    async def stopping(made: Made, folder: Path) -> None:
        made.server.draining = True
        path = put(folder, x=rows_of(2))
        await asyncio.sleep(0.5)
        assert path.exists() and not (folder / "out" / "m" / "a.npz").exists()

    async def next_one(made: Made, folder: Path) -> None:
        await gone(folder / "in" / "m" / "a.npz")
        assert (folder / "out" / "m" / "a.npz").exists()

    beside_channel(tmp_path, stopping)
    beside_channel(tmp_path, next_one)


def test_a_request_under_way_is_answered_before_the_channel_closes(tmp_path: Path) -> None:
    async def run(made: Made) -> None:
        folder = tmp_path / "channel"
        made.link.hold = True
        async with opened(made.server, folder):
            put(folder, x=rows_of(2))
            while not made.link.held:
                await asyncio.sleep(0.02)
            asyncio.get_running_loop().call_later(0.2, made.link.release)
        assert (folder / "out" / "m" / "a.npz").exists()
        assert not (folder / "in" / "m" / "a.npz").exists()

    with_server(tmp_path, run)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    async def run(made: Made) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="cannot be written"):
            async with opened(made.server, tmp_path / "file" / "channel"):
                pass

    with_server(tmp_path, run)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=12), st.integers(0, 700), st.booleans())
def test_any_archive_is_read_or_refused(
    tmp_path: Path, change: bytes, at: int, packed: bool
) -> None:
    path = tmp_path / "a.npz"
    (np.savez_compressed if packed else np.savez)(path, x=rows_of(20))
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + change + whole[at + len(change) :])
    try:
        check_archive(path, 1 << 20)
        assert all(isinstance(array, np.ndarray) for array in _read(path).values())
    except (DataError, ServingError) as error:
        assert error.what
