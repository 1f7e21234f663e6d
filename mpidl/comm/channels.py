"""How the messages of a job can be protected: one line for each way."""

from __future__ import annotations

from typing import Any

from mpidl.registry import Registry

CHANNELS: Registry[Any] = Registry(
    "channel",
    "security.channel",
    {"tls-like": "mpidl.security.encrypted_ranks:EncryptedRanks"},
)
