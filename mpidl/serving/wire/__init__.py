"""The messages of the protocol, made at run time from the descriptors beside this file.

They live in a pool of their own: a client of the same protocol in this process has its own ones.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mpidl.extras import load_extra

DESCRIPTORS = Path(__file__).with_name("open_inference.binpb")
SERVICE = "inference.GRPCInferenceService"


@cache
def load_messages() -> Any:
    """All message classes by name (`.ModelInferRequest`), and `.service`, the descriptor.

    Raises:
        PlatformError: protobuf is not installed.
    """
    descriptor_pb2 = load_extra("google.protobuf.descriptor_pb2", "serving")
    descriptor_pool = load_extra("google.protobuf.descriptor_pool", "serving")
    message_factory = load_extra("google.protobuf.message_factory", "serving")
    pool = descriptor_pool.DescriptorPool()
    found = SimpleNamespace()
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file
    for file in files:
        pool.Add(file)
        for message in file.message_type:
            descriptor = pool.FindMessageTypeByName(f"{file.package}.{message.name}")
            setattr(found, message.name, message_factory.GetMessageClass(descriptor))
    found.service = pool.FindServiceByName(SERVICE)
    return found
