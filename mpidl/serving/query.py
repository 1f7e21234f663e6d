"""Sends the samples of a file to a server, in batches, and puts the outputs in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpidl.data.formats.csv import read_table
from mpidl.data.formats.source import MALFORMED, unusable
from mpidl.errors import ConfigError, DataError, MpidlError, PlatformError, UnreadableError
from mpidl.files import reading
from mpidl.serving.client import Client, Model
from mpidl.serving.endpoint import Endpoint, read
from mpidl.serving.login import Login
from mpidl.serving.tensors import NAMES, TensorSpec

Arrays = dict[str, NDArray[Any]]
REQUEST_BYTES = 16 << 20  # of one request; below any server's max_request_bytes by default
MOST_CONNECTIONS = 32
POLL = 0.5  # seconds
# What zipfile and NumPy raise for damaged archives (encrypted, unknown methods, huge shapes)
DAMAGED = (*MALFORMED, RuntimeError, MemoryError, TypeError, AttributeError, OverflowError)
_SAVE_AGAIN = "save it again without objects: numpy.save or numpy.savez"


class Connection(Protocol):
    """To a server, of one thread."""

    def infer(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `Client.infer`."""

    def malformed(self, what: str) -> PlatformError:
        """See `Client.malformed`."""

    def close(self) -> None:
        """See `Client.close`."""


def _read_npy(path: Path) -> Arrays:
    return {"": np.lib.format.open_memmap(path, mode="r")}


def _read_npz(path: Path) -> Arrays:
    found = np.load(path, allow_pickle=False)
    if not isinstance(found, np.lib.npyio.NpzFile):
        raise ValueError("it is no archive")  # but one array
    with found:
        return {name: found[name] for name in found.files}


def _read_csv(path: Path) -> Arrays:
    return {"": read_table(path).features}


READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
}


def read_arrays(path: Path) -> Arrays:
    """The arrays of a file by name; of a file without names the one array is called "".

    Raises:
        ConfigError: Its suffix is none of `READERS`.
        DataError: It cannot be read.
    """
    if path.suffix not in READERS:
        raise ConfigError(
            f"unknown suffix {path.suffix!r}",
            where=str(path),
            remedy=f"use one of {', '.join(READERS)}",
        )
    with reading(path), open(path, "rb"):
        pass  # missing, or out of reach
    try:
        return READERS[path.suffix](path)
    except DAMAGED as error:
        raise unusable(error, path, _SAVE_AGAIN) from error


def fit(arrays: Arrays, model: Model, path: Path) -> Arrays:
    """The inputs of a model from the arrays of a file.

    Args:
        arrays: By name. Others than the inputs of the model are left out; the only array of a
            file, or of an archive, is the only input, whatever its name.
        model: It.
        path: The file, for messages.

    Returns:
        (n, *shape) of each input, in a dtype of the protocol.

    Raises:
        DataError: They do not fit.
    """
    only = len(model.inputs) == 1 and len(arrays) == 1
    found: Arrays = {}
    for spec in model.inputs:
        array = next(iter(arrays.values())) if only else arrays.get(spec.name)
        if array is None:
            names = ", ".join(repr(name) for name in list(arrays)[:20] if name)
            raise DataError(
                f"has no array {spec.name!r}" + (f", only {names}" if names else ""),
                where=str(path),
                remedy=f"{describe(model)}; save them by these names in one .npz file",
            )
        found[spec.name] = _fit_one(spec, array, model, path)
    lengths = {name: len(array) for name, array in found.items()}
    if len(set(lengths.values())) > 1:
        what = f"the inputs have different numbers of samples: {lengths}"
        raise DataError(what, where=str(path), remedy="save as many of each")
    if not all(lengths.values()):
        raise DataError("has no samples", where=str(path), remedy="check the file")
    return found


def _fit_one(spec: TensorSpec, array: NDArray[Any], model: Model, path: Path) -> NDArray[Any]:
    """One input, (n, *shape)."""
    if path.suffix == ".csv" and array[:1].size == np.prod(spec.shape):
        array = array.reshape(len(array), *spec.shape)  # a line holds the elements in order
    if array.shape == spec.shape:
        array = array[np.newaxis]
    if array.shape[1:] != spec.shape or array.ndim != len(spec.shape) + 1:
        raise DataError(
            f"has samples of another shape: {list(array.shape)}, where {spec.name!r} takes "
            f"{['n', *spec.shape]}".replace("'n'", "n"),
            where=str(path),
            remedy=f"{describe(model)}; reshape the array",
        )
    if array.dtype.kind not in "biuf":
        what = f"has elements of the dtype {array.dtype}, where {spec.name!r} takes {spec.datatype}"
        raise DataError(what, where=str(path), remedy=_SAVE_AGAIN)
    return array


def describe(model: Model) -> str:
    """What a model takes, in words."""
    inputs = ", ".join(
        f"{spec.name!r} of shape ({', '.join(['n', *map(str, spec.shape)])}) and datatype "
        f"{spec.datatype}"
        for spec in model.inputs
    )
    return f"the model {model.name!r} takes {inputs}"


def convert(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """An array in a dtype that travels: its own where that is smaller than the model's."""
    small = array.dtype in NAMES and array.dtype.itemsize <= spec.dtype.itemsize
    if array.dtype.kind == "b" or not small:
        with np.errstate(over="ignore"):
            return array.astype(spec.dtype)
    return array


def find_server(
    place: Path, address: tuple[str, int] | None, wait: float, login: Login | None = None
) -> Client:
    """A connection to a server that takes requests.

    Args:
        place: Its endpoint.json.
        address: Of REST, in place of what the file says.
        wait: Seconds to wait for it.
        login: What to show to a server that asks who is there.

    Raises:
        MpidlError: There is none within `wait`.
    """
    end = time.monotonic() + wait
    while True:
        try:
            client = _connect(place, address, login)
            if client.is_ready():
                return client
            error: MpidlError = PlatformError(
                "the server does not take requests: it is stopping, or a model is not ready",
                where=client.where,
                remedy="try later, or wait for it with --wait",
            )
        except (ConfigError, PlatformError, UnreadableError) as caught:
            error = caught
        if time.monotonic() >= end:
            raise error
        time.sleep(POLL)


def _connect(place: Path, address: tuple[str, int] | None, login: Login | None) -> Client:
    """A connection to a server; its file says whether it speaks TLS."""
    if address is not None and not place.is_file():
        return Client(*address)
    found = read(place)
    if found.token_file and login == Login():
        login = Login(token_file=Path(found.token_file))
    return Client(*(address or reach(found)), login=login, fingerprint=found.fingerprint)


def reach(endpoint: Endpoint) -> tuple[str, int]:
    """The address to connect to from this machine.

    Raises:
        PlatformError: The server listens on its own machine only, and this is another one.
    """
    target = endpoint.target
    if target is not None:
        return target, endpoint.http_port
    job = f"srun --jobid={endpoint.job} --overlap --ntasks=1 --nodelist={endpoint.host}"
    inside = f"run this command there ({job} mpidl query ...), or " if endpoint.job else ""
    raise PlatformError(
        f"the server on {endpoint.host} listens on {endpoint.address}, which only that machine "
        "reaches",
        where=f"port {endpoint.http_port}",
        remedy=f"{inside}open a tunnel ({endpoint.tunnel}) and add "
        f"--address 127.0.0.1:{endpoint.http_port}",
    )


def choose_model(models: list[str], name: str | None) -> str:
    """The model to ask.

    Raises:
        ConfigError: The server has several, and none is named.
    """
    if name is not None:
        return name
    if len(models) != 1:
        what = "the server has no models" if not models else "the server has several models"
        remedy = f"choose one with --model: {', '.join(models[:20])}"
        raise ConfigError(what, where="--model", remedy=remedy)
    return models[0]


def ask(
    connect: Callable[[], Connection],
    model: Model,
    inputs: Mapping[str, NDArray[Any]],
    attempts: int,
) -> Arrays:
    """The outputs for all samples, in their order.

    Requests of several connections are under way at once, so that all ranks of the server have
    work.

    Args:
        connect: Makes a connection to the server, also when it has moved to another node.
        model: To ask.
        inputs: See `fit`.
        attempts: How often a request is sent at most, each time over a new connection.

    Returns:
        (n, ...) of each output.

    Raises:
        MpidlError: A request is not answered.
    """
    total = len(next(iter(inputs.values())))
    bytes_each = sum(int(np.prod(spec.shape)) * spec.dtype.itemsize for spec in model.inputs)
    rows = max(1, min(model.max_batch_size, REQUEST_BYTES // max(1, bytes_each)))
    found: Arrays = {
        spec.name: np.empty((total, *spec.shape), spec.dtype) for spec in model.outputs
    }
    own = local()

    def send(low: int) -> None:
        part = slice(low, min(total, low + rows))
        batch = {spec.name: convert(inputs[spec.name][part], spec) for spec in model.inputs}
        outputs = _infer(own, connect, model, batch, attempts)
        for name, array in found.items():
            array[part] = outputs[name]

    connections = min(MOST_CONNECTIONS, 2 * model.ranks, -(-total // rows))
    with ThreadPoolExecutor(connections) as pool:
        try:
            for done in [pool.submit(send, low) for low in range(0, total, rows)]:
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _infer(
    own: local, connect: Callable[[], Connection], model: Model, batch: Arrays, attempts: int
) -> Arrays:
    """The outputs of one request, over the connection of this thread."""
    rows = len(next(iter(batch.values())))
    for left in reversed(range(attempts)):
        if not hasattr(own, "client"):
            own.client = connect()
        client: Connection = own.client
        try:
            outputs = client.infer(model.name, batch)
        except PlatformError:
            client.close()
            del own.client
            if left:
                continue
            raise
        for spec in model.outputs:
            shape = outputs[spec.name].shape if spec.name in outputs else None
            if shape != (rows, *spec.shape):
                raise client.malformed(f"the output {spec.name!r} has the shape {shape}")
        return outputs
    raise AssertionError("there is at least one attempt")
