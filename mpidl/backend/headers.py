"""What C, CUDA and Python share: the numbers of kernels/codes.h and the structs of
kernels/geometry.h.

The headers are the only place where they are written; here they are read.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np

import mpidl._kernels

_ENUMERATOR = re.compile(r"\b([A-Z][A-Z0-9_]*)\s*=\s*(\d+)")
_STRUCT = re.compile(r"typedef struct \{(.*?)\}\s*(\w+);", re.S)
_FIELDS = re.compile(r"long long ([\w, ]+);")


def kernel_folder() -> Path:
    """The folder that holds cuda/, cpu/, the shared headers and the built libraries."""
    return Path(mpidl._kernels.__path__[0])


def shared_headers() -> str:
    """The text of both headers."""
    folder = kernel_folder()
    return (folder / "codes.h").read_text() + (folder / "geometry.h").read_text()


@cache
def codes(prefix: str) -> dict[str, int]:
    """The numbers of an enumeration: `codes("ACT")` is {"relu": 0, "gelu": 1, ...}."""
    text = (kernel_folder() / "codes.h").read_text()
    return {
        name.removeprefix(f"{prefix}_").lower(): int(number)
        for name, number in _ENUMERATOR.findall(text)
        if name.startswith(f"{prefix}_")
    }


@cache
def structs() -> dict[str, np.dtype[np.void]]:
    """The structs as dtypes of NumPy records, by name; all their fields are int64."""
    text = (kernel_folder() / "geometry.h").read_text()
    found = {}
    for body, name in _STRUCT.findall(text):
        fields = [f.strip() for line in _FIELDS.findall(body) for f in line.split(",")]
        found[name] = np.dtype([(field, np.int64) for field in fields])
    return found
