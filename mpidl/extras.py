"""Packages that only some uses need: imported late, with the pip command where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from mpidl.errors import PlatformError

# Package -> the optional dependency of pyproject.toml that installs it
EXTRAS = {
    "PIL": "images",
    "cryptography": "security",
    "google": "serve",
    "grpc": "serve",
    "h5netcdf": "netcdf",
    "httptools": "serve",
    "matplotlib": "plot",
    "safetensors": "weights",
    "onnx": "onnx",
    "tokenizers": "text",
    "tensorboardX": "tensorboard",
    "pyarrow": "tables",
    "tqdm": "progress",
    "uvicorn": "serve",
    "uvloop": "serve",
    "xarray": "netcdf",
    "zarr": "zarr",
}


def load_extra(module: str, activity: str) -> Any:
    """Import an optional dependency.

    Args:
        module: Its full name, such as "matplotlib.pyplot".
        activity: What needs it, for the message: "drawing curves".

    Raises:
        PlatformError: It is not installed; the remedy is the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise PlatformError(
            f"{activity} needs {package}, which cannot be imported: {error}",
            remedy=f"pip install 'mpidl[{EXTRAS[package]}]'",
        ) from error
