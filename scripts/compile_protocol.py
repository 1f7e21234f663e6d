"""Compiles the messages of the serving protocol: open_inference.proto -> open_inference.binpb.

What is carried is a set of descriptors, from which the protobuf library makes the messages at run
time, in a pool of their own (mpidl/serving/wire): it serves every version of protobuf, and does
not collide with a client of the same protocol in the same process.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "mpidl" / "serving" / "wire"
SOURCE, COMPILED = FOLDER / "open_inference.proto", FOLDER / "open_inference.binpb"


def compile_protocol(out: Path) -> None:
    """Write the descriptors of `SOURCE` to `out` (needs grpcio-tools)."""
    from grpc_tools import protoc

    arguments = ("protoc", f"-I{FOLDER}", f"--descriptor_set_out={out}", SOURCE.name)
    if protoc.main(arguments) != 0:
        sys.exit("open_inference.proto cannot be compiled")


if __name__ == "__main__":
    compile_protocol(COMPILED)
