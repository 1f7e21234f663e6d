"""Every CUDA source compiles to machine code for the GPUs of today's clusters, without a driver,
and spills no register.
"""

from __future__ import annotations

import pytest

from mpidl.backend import kernels
from mpidl.backend.signature import CUDA
from mpidl.backend.table import KERNELS
from scripts.kernel_report import report
from tests.standin.harness import KERNEL

pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
ARCHITECTURES = ["sm_80", "sm_90"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("real", ["float", "double", "f16", "bf16"])
@pytest.mark.parametrize("family", kernels.cuda_families())
def test_compiles_to_machine_code(family: str, real: str, architecture: str) -> None:
    names = [name for name, _ in KERNEL.findall(kernels.cuda_source(family))]
    cubin, log, found = report(family, real, architecture)
    assert cubin[:4] == b"\x7fELF"
    assert "warning" not in log, log
    assert names and set(found) == set(names)
    for name, (registers, shared, spilled) in found.items():
        assert spilled == 0, f"{name} spills {spilled} bytes"
        assert registers <= 128 and shared <= 48 << 10, (name, registers, shared)


def test_the_table_and_the_sources_agree() -> None:
    sources = {
        family: [name for name, _ in KERNEL.findall(kernels.cuda_source(family))]
        for family in kernels.cuda_families()
    }
    wanted: dict[str, list[str]] = {family: [] for family in sources}
    for name, kernel in KERNELS.items():
        assert (CUDA in kernel.backends) == (kernel.cover is not None), name
        if CUDA in kernel.backends:
            wanted[kernel.family].append(name)
    assert {family: sorted(names) for family, names in sources.items()} == {
        family: sorted(names) for family, names in wanted.items()
    }
