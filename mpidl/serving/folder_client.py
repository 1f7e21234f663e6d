"""A client that speaks to a server by files (`mpidl serve --channel`), without a network."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.data.formats.source import unusable
from mpidl.errors import ConfigError, DataError, PlatformError
from mpidl.files import reading, write_atomically, writing
from mpidl.serving.channel import MODELS
from mpidl.serving.client import Model
from mpidl.serving.endpoint import FILE
from mpidl.serving.query import DAMAGED

POLL = 0.05  # seconds
MOST_SAMPLES = 1 << 20  # of a file
MOST_BYTES = 1 << 24  # of models.json, or of an error


class FolderClient:
    """Sends requests into a folder and waits for the answers.

    Args:
        folder: Of the channel.
        wait: Seconds to wait for each answer.
    """

    def __init__(self, folder: Path, wait: float) -> None:
        self.where = str(folder)
        self._folder = folder
        self._wait = wait

    def close(self) -> None:
        """Nothing is open."""

    def models(self) -> list[Model]:
        """The models of the server; it cuts files into batches, so that they may have more samples.

        Raises:
            DataError: models.json cannot be read.
        """
        found: list[Model] = _decode(self._folder / MODELS, list[Model])
        return [msgspec.structs.replace(model, max_batch_size=MOST_SAMPLES) for model in found]

    def no_model(self, name: str, models: list[str]) -> ConfigError:
        """The error for a model that is not served."""
        remedy = f"choose one with --model: {', '.join(models[:20])}"
        return ConfigError(f"there is no model {name!r}", where=self.where, remedy=remedy)

    def infer(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs for some samples.

        Args:
            name: Of the model.
            inputs: Name and tensor of each input, (rows, ...).

        Raises:
            ConfigError: The server refuses the request.
            PlatformError: There is no answer within `wait`; the request is withdrawn.
            DataError: The folder cannot be written or read.
        """
        key = uuid.uuid4().hex
        request = self._folder / "in" / name / f"{key}.npz"
        answer = self._folder / "out" / name / request.name
        refusal = answer.with_suffix(".json")
        try:
            with writing(request), write_atomically(request) as partial, open(partial, "wb") as f:
                np.savez(f, allow_pickle=False, **inputs)
            if self._await(answer, refusal, "no server answers") == refusal:
                what = (
                    f"the server says: {_decode(refusal, dict[str, str]).get('error', '')[:2000]}"
                )
                raise ConfigError(what, where=self.where)
            try:
                with np.load(answer, allow_pickle=False) as archive:
                    return {one: archive[one] for one in archive.files}
            except DAMAGED as error:
                raise unusable(error, answer, "send the request again") from error
        finally:
            for path in (request, answer, refusal):
                with suppress(OSError):
                    path.unlink()

    def malformed(self, what: str) -> PlatformError:
        """The error for an answer that does not fit the request."""
        remedy = "see which program writes into that folder"
        return PlatformError(f"the answer does not fit: {what}", where=self.where, remedy=remedy)

    def _await(self, path: Path, other: Path, what: str) -> Path:
        """The first of two files that is there."""
        end = time.monotonic() + self._wait
        while True:
            for each in (path, other):
                if each.exists():
                    return each
            if time.monotonic() >= end:
                raise PlatformError(
                    f"{what} within {self._wait:g} s",
                    where=self.where,
                    remedy="see whether a server runs with --channel and this folder (squeue), or "
                    "wait longer with --wait",
                )
            time.sleep(POLL)


def find_channel(path: Path, wait: float) -> bool:
    """Whether a path is the folder of a channel, and not what is served over the network.

    Args:
        path: Of the command line.
        wait: Seconds in which a server may start that writes one or the other.
    """
    end = time.monotonic() + wait
    while True:
        if (path / MODELS).is_file():
            return True
        known = path.suffix == ".json" or path.is_file() or (path / FILE).is_file()
        if known or time.monotonic() >= end:
            return False
        time.sleep(POLL)


def _decode(path: Path, kind: Any) -> Any:
    with reading(path), open(path, "rb") as file:
        content = file.read(MOST_BYTES)
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        what = f"is not what a server writes: {str(error)[:300]}"
        raise DataError(what, where=str(path), remedy="start the server again") from error
