"""Every CUDA source compiles to machine code for the GPUs of today's clusters, without a driver."""

from __future__ import annotations

from typing import Any

import pytest

from mpidl.backend import kernels
from tests.standin.harness import KERNEL

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
ARCHITECTURES = ["sm_80", "sm_90"]


def call(function: Any, *args: Any) -> Any:
    status, *rest = function(*args)
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, status
    return rest[0] if rest else None


def compile_cubin(code: str, options: list[str]) -> bytes:
    program = call(nvrtc.nvrtcCreateProgram, code.encode(), b"kernel.cu", 0, [], [])
    encoded = [option.encode() for option in options]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
    log = b" " * call(nvrtc.nvrtcGetProgramLogSize, program)
    call(nvrtc.nvrtcGetProgramLog, program, log)
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
    assert "warning" not in log.decode(), log.decode()
    cubin = b" " * call(nvrtc.nvrtcGetCUBINSize, program)
    call(nvrtc.nvrtcGetCUBIN, program, cubin)
    return cubin


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("family", kernels.cuda_families())
def test_compiles_to_machine_code(family: str, real: str, architecture: str) -> None:
    code = kernels.cuda_source(family)
    cubin = compile_cubin(code, [f"--gpu-architecture={architecture}", "--std=c++17", f"-DREAL={real}"])
    assert cubin[:4] == b"\x7fELF"
    names = [name for name, _ in KERNEL.findall(code)]
    assert names and all(name.encode() in cubin for name in names)
