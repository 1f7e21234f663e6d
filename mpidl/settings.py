"""The environment variables that mpidl reads: one table; docs/configuration.md lists it.

Variables of other programs (OMP_NUM_THREADS, SLURM_*, HDF5_USE_FILE_LOCKING) are read where they
are obeyed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """An environment variable.

    Attributes:
        name: As it is spelled in the environment.
        default: What holds where it is not set, or empty.
        meaning: For people.
    """

    name: str
    default: str
    meaning: str

    @property
    def value(self) -> str:
        """Its value now."""
        return os.environ.get(self.name) or self.default


BACKEND = Variable("MPIDL_BACKEND", "auto", '`numpy` or `cupy` in place of `backend.name = "auto"`')
BIND = Variable(
    "MPIDL_BIND",
    "auto",
    "`none`: leave the affinity of processes alone; otherwise the cores that the launcher allows "
    "are divided among the ranks of a node",
)
WATCHDOG = Variable("MPIDL_WATCHDOG", "", "as `sync.watchdog`, outside of training runs")
GUARD = Variable("MPIDL_GUARD", "auto", "as `sync.guard`, outside of training runs")
TUNE = Variable(
    "MPIDL_TUNE", "", "the table of `mpidl tune`, in place of `~/.config/mpidl/tune.json`"
)
GPU_AWARE = Variable(
    "MPIDL_GPU_AWARE", "", "`1` or `0`: whether MPI can read device memory, in place of a trial"
)
WINOGRAD = Variable(
    "MPIDL_WINOGRAD",
    "on",
    "`off`: direct convolutions only; slower, rounding errors of 3e-7 instead of 1e-5",
)
CPU_LEVEL = Variable(
    "MPIDL_CPU_LEVEL",
    "",
    "`v2`, `v3`, `v4`: use this level of the C kernels only; `none`: pure NumPy",
)
JOB_CERTIFICATE = Variable(
    "MPIDL_JOB_CERTIFICATE",
    "",
    "the job's certificate and key: a folder, or the name of one in `MPIDL_KEYS`",
)
KEYS = Variable("MPIDL_KEYS", "~/.config/mpidl/keys", "the folder of identities")
SITE = Variable(
    "MPIDL_SITE",
    "~/.config/mpidl/site",
    "the public folder of a site: its root, its list of revoked certificates, its policy",
)
CHANNEL = Variable(
    "MPIDL_CHANNEL",
    "off",
    "`nodes` or `all`: encrypt messages between ranks from the start on, as "
    '`security.channel = "tls-like"` with that scope',
)
JOB_CERTIFICATE = Variable(
    "MPIDL_JOB_CERTIFICATE", "", "as `security.channel.certificate`, where that is not set"
)
PASSPHRASE_FILE = Variable(
    "MPIDL_PASSPHRASE_FILE",
    "",
    "a file of mode 0600 with the passphrase of private keys, where nobody can be asked",
)
SECURITY = Variable(
    "MPIDL_SECURITY",
    "",
    "a TOML file with a section `[security]` that holds for every command; runs cannot weaken it",
)

VARIABLES = (
    BACKEND,
    BIND,
    WATCHDOG,
    GUARD,
    TUNE,
    GPU_AWARE,
    WINOGRAD,
    CPU_LEVEL,
    CHANNEL,
    JOB_CERTIFICATE,
    KEYS,
    SITE,
    PASSPHRASE_FILE,
    SECURITY,
)
