"""What a job was made of when it wrote a checkpoint: code, data, environment."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

import mpidl
from mpidl.backend import Ops
from mpidl.comm import mpi
from mpidl.comm.context import Context
from mpidl.data import Reader
from mpidl.data.hdf5 import h5py
from mpidl.security.code import code_digest, revision
from mpidl.train.admission import manifest_digest

Text = Annotated[str, Meta(max_length=4096)]


class Origin(msgspec.Struct, frozen=True):
    """A job that has trained.

    Attributes:
        ranks: Their number.
        code: SHA-256 over the sources of the package.
        revision: The git commit; empty: not known.
        data: Folder -> SHA-256 of its manifest, which has those of all files.
        environment: Versions of what computes, by name.
    """

    ranks: Annotated[int, Meta(ge=1, le=1 << 31)]
    code: Text
    revision: Text
    data: dict[Text, Text]
    environment: dict[Text, Text]

    @staticmethod
    def of(readers: Sequence[Reader], ops: Ops, context: Context) -> Origin:
        """Of this job."""
        folders = [reader.folder.absolute() for reader in readers]
        environment = {
            "mpidl": mpidl.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "h5py": h5py.__version__,
            "mpi": mpi.load().Get_library_version().partition("\n")[0].strip("\0 ")[:200],
            "machine": platform.machine(),
            "device": ops.describe(),
        }
        return Origin(
            context.size,
            code_digest(),
            revision(),
            {str(folder): manifest_digest(folder) for folder in folders},
            environment,
        )

    def differences(self, now: Origin) -> list[str]:
        """In what a job of now differs from this one, in words; data by their content alone."""
        found = []
        if self.code != now.code:
            found.append(f"the code: {self.code[:16]}, now {now.code[:16]}")
        if sorted(self.data.values()) != sorted(now.data.values()):
            known = set(now.data.values())
            gone = [folder for folder, digest in self.data.items() if digest not in known]
            found.append(f"the data: {', '.join(gone) or 'not the same data sets'}")
        if self.ranks != now.ranks:
            found.append(f"ranks: {self.ranks}, now {now.ranks}")
        for name in sorted({*self.environment, *now.environment}):
            then, here = self.environment.get(name, "none"), now.environment.get(name, "none")
            if then != here:
                found.append(f"{name}: {then}, now {here}")
        return found
