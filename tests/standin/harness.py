"""Compiles a CUDA source with g++ against host_cuda.h and launches its kernels on NumPy arrays.

Arguments are checked against the kernel's signature as strictly as a GPU would need them: kind,
dtype and contiguity.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mpidl.backend.headers import structs

HEADER = Path(__file__).with_name("host_cuda.h")
KERNEL = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)\s*\{', re.S)
COOPERATIVE = (
    *("__sync", "__shfl", "warp_sum", "__shared__", "all_lanes", "column_pair"),
    *("attend(", "to_bytes("),
)
REALS = {"float": np.float32, "double": np.float64, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
SCALARS = {
    "i64": np.int64,
    "int": np.int32,
    "u8": np.uint8,
    "i8": np.int8,
    "unsigned": np.uint32,
    "float": np.float32,
    "double": np.float64,
}
CACHE = Path(tempfile.gettempdir()) / "mpidl-host-kernels"


class Recorder:
    """What a stream capture has seen: while one is active, work is written down and not done."""

    active: list[Any] | None = None

    @classmethod
    def run(cls, work: Any) -> None:
        if cls.active is None:
            work()
        else:
            cls.active.append(work)


class HostModule:
    """Like cupy.RawModule: code and options in, functions out."""

    order = 0  # 0 forward, 1 reversed, more: a random order with that seed

    def __init__(self, code: str, options: Sequence[str] = ()) -> None:
        real = next((option[7:] for option in options if option.startswith("-DREAL=")), "float")
        self.types: dict[str, Any] = (
            SCALARS
            | structs()
            | {
                "REAL": REALS[real],
                "ACC": np.float64 if real == "double" else np.float32,
            }
        )
        self.signatures = {name: _parameters(text) for name, text in KERNEL.findall(code)}
        bodies = {m.group(1): _body(code, m.end()) for m in KERNEL.finditer(code)}
        self.cooperative = {
            name: any(word in body for word in COOPERATIVE) for name, body in bodies.items()
        }
        self.library = ctypes.CDLL(str(_compile(code, options, self.signatures)))

    def get_function(self, name: str) -> Any:
        if name not in self.signatures:
            raise KeyError(f"no kernel {name!r}")
        function = getattr(self.library, f"launch_{name}")
        function.restype = ctypes.c_char_p

        def launch(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
            assert 0 < int(np.prod(block)) <= 1024, f"{name}: block {block}"
            assert grid[0] < 2**31 and all(extent >= 1 for extent in grid), f"{name}: grid {grid}"
            kept = [
                self._argument(name, kind, arg)
                for kind, arg in zip(self.signatures[name], args, strict=True)
            ]
            pointers = (ctypes.c_void_p * len(kept))(*[value.ctypes.data for value in kept])
            extents = [(ctypes.c_uint * 3)(*(*e, 1, 1)[:3]) for e in (grid, block)]

            def work(held: Any = kept) -> None:
                problem = function(*extents, pointers, int(self.cooperative[name]), self.order)
                assert problem is None, f"{name}: {problem.decode()}"

            Recorder.run(work)

        return launch

    def _argument(self, kernel: str, kind: tuple[str, bool], arg: Any) -> np.ndarray[Any, Any]:
        """One argument as bytes in memory: the address of an array, or the value of a scalar."""
        base, pointer = kind
        wanted = np.dtype(self.types[base])
        if pointer and isinstance(arg, np.uint64) and arg == 0:
            return np.array([arg])  # a null pointer
        if pointer:
            assert isinstance(arg, np.ndarray) and arg.dtype == wanted, (
                f"{kernel}: {base}* got {type(arg)} {arg.dtype}"
            )
            strided = (
                kernel.startswith("attention") and arg.strides[-1] == arg.itemsize
            )  # these are told the strides
            assert arg.flags.c_contiguous or strided, (
                f"{kernel}: {base}* got an array that is not contiguous"
            )
            return np.array([arg.ctypes.data], np.uint64)
        assert isinstance(arg, np.generic) and arg.dtype == wanted, (
            f"{kernel}: {base} got {type(arg)} {arg!r}"
        )
        return np.array([arg])


def _parameters(text: str) -> list[tuple[str, bool]]:
    """(base type, is a pointer) for each parameter."""
    result = []
    for parameter in text.split(","):
        words = (
            parameter.replace("const", "").replace("__restrict__", "").replace("*", " * ").split()
        )
        result.append((words[0], "*" in words))
    return result


def _body(code: str, start: int) -> str:
    depth, end = 1, start
    while depth:
        depth += {"{": 1, "}": -1}.get(code[end], 0)
        end += 1
    return code[start:end]


def _compile(
    code: str, options: Sequence[str], signatures: dict[str, list[tuple[str, bool]]]
) -> Path:
    launchers = []
    for name, parameters in signatures.items():
        args = ", ".join(
            f"*({base}{'*' if pointer else ''}*)a[{i}]"
            for i, (base, pointer) in enumerate(parameters)
        )
        launchers.append(f"static void call_{name}(void **a) {{ {name}({args}); }}")
        launchers.append(
            f'extern "C" const char *launch_{name}'
            "(const unsigned *g, const unsigned *b, void **a, int c, int s) "
            f"{{ return launch(call_{name}, g, b, a, c, s); }}"
        )
    text = "\n".join([HEADER.read_text(), code, *launchers])
    key = hashlib.sha256((text + " ".join(options)).encode()).hexdigest()[:20]
    CACHE.mkdir(exist_ok=True)
    library = CACHE / f"{key}.so"
    if not library.exists():
        source = CACHE / f"{key}.cpp"
        source.write_text(text)
        partial = library.with_suffix(f".{id(text)}.partial")
        flags = [option for option in options if option.startswith(("-D", "-I"))]
        command = [
            "g++",
            "-std=c++17",
            "-O2",
            "-shared",
            "-fPIC",
            *flags,
            str(source),
            "-o",
            str(partial),
        ]
        subprocess.run(command, check=True, capture_output=True, text=True)
        partial.replace(library)
    return library
