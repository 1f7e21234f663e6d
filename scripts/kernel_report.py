"""Registers, shared memory and spills of every CUDA kernel, as the compiler reports them: python
scripts/kernel_report.py

Needs NVRTC and cuda-bindings, no GPU. `make kernel-report` writes the table into kernels/README.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mpidl.backend import kernels

ROOT = Path(__file__).parent.parent

ACCUMULATOR = {"float": "float", "double": "double", "f16": "float", "bf16": "float"}
MARK = "## Registers and shared memory"
ENTRY = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers([^\n]*)",
    re.S,
)


def compile_cubin(code: str, options: list[str]) -> tuple[bytes, str]:
    """Machine code and the compiler's log. Raises RuntimeError with the log."""
    from cuda.bindings import nvrtc

    def call(function: Any, *args: Any) -> Any:
        status, *rest = function(*args)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(str(status))
        return rest[0] if rest else None

    program = call(nvrtc.nvrtcCreateProgram, code.encode(), b"kernel.cu", 0, [], [])
    encoded = [option.encode() for option in options]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
    log = b" " * call(nvrtc.nvrtcGetProgramLogSize, program)
    call(nvrtc.nvrtcGetProgramLog, program, log)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(log.decode())
    cubin = b" " * call(nvrtc.nvrtcGetCUBINSize, program)
    call(nvrtc.nvrtcGetCUBIN, program, cubin)
    return cubin, log.decode()


def report(
    family: str, real: str, architecture: str
) -> tuple[bytes, str, dict[str, tuple[int, int, int]]]:
    """Machine code, log, and (registers, bytes of shared memory, bytes spilled) for each kernel of
    a family.
    """
    options = [
        f"--gpu-architecture={architecture}",
        "--std=c++17",
        f"-DREAL={real}",
        f"-DACC={ACCUMULATOR[real]}",
        "--ptxas-options=-v",
    ]
    cubin, log = compile_cubin(kernels.cuda_source(family), options)
    found = {}
    for name, stores, loads, registers, rest in ENTRY.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        found[name] = (int(registers), int(shared[1]) if shared else 0, int(stores) + int(loads))
    return cubin, log, found


def table() -> str:
    """A Markdown table of all kernels, float for sm_80 and sm_90."""
    lines = [
        "| kernel | registers sm_80 | sm_90 | shared memory | spills |",
        "| --- | --- | --- | --- | --- |",
    ]
    for family in kernels.cuda_families():
        old, new = (report(family, "float", architecture)[2] for architecture in ("sm_80", "sm_90"))
        for name in sorted(new):
            spilled = old[name][2] + new[name][2]
            lines.append(
                f"| {family}: {name} | {old[name][0]} | {new[name][0]} | {new[name][1]} "
                f"| {spilled} |"
            )
    return "\n".join(lines)


def main() -> None:
    readme = ROOT / "kernels" / "README.md"
    before = readme.read_text().split(MARK)[0].rstrip()
    readme.write_text(
        f"{before}\n\n{MARK}\n\n"
        f"float32, as ptxas reports them (`make kernel-report`).\n\n{table()}\n"
    )


if __name__ == "__main__":
    main()
