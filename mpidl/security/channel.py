"""The section that chooses how messages between ranks are protected."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec

from mpidl.comm.channels import CHANNELS
from mpidl.comm.context import Context
from mpidl.errors import SecurityError
from mpidl.options import OneOf
from mpidl.registry import Choice, Registry

OFF = "off"


class ChannelConfig(Choice, frozen=True):
    """How messages between ranks are protected.

    Attributes:
        name: "tls-like": certificates on both sides, fresh keys, every message encrypted and
            authenticated (see docs/secure-ranks.md); "off".
        options: Of what is chosen.
    """

    KEY: ClassVar[str] = "name"
    REGISTRY: ClassVar[Registry[Any]] = CHANNELS
    NONE: ClassVar[str] = OFF

    name: Annotated[str, OneOf(CHANNELS, OFF)] = OFF


def open_channel(context: Context, channel: ChannelConfig, agreed: Any = None) -> Context:
    """Protect the messages of a job from here on. Collective.

    Args:
        context: The ranks; where the environment has protected them already, they stay so.
        channel: How.
        agreed: What all ranks must have alike, such as the configuration; plain values.

    Returns:
        The ranks to use from now on.

    Raises:
        SecurityError: A rank is not trusted, or is protected less than the settings ask for.
    """
    if channel.name == OFF:
        return context
    binding = msgspec.msgpack.encode(agreed, order="deterministic")
    opened: Context = channel.chosen(channel.options).open(context, binding)
    return opened


def check_open(context: Context, channel: ChannelConfig) -> None:
    """Refuse to go on unprotected where the settings ask for protection.

    Raises:
        SecurityError: So it would be.
    """
    if channel.name != OFF and context.channel == OFF:
        raise SecurityError(
            "the settings ask for encrypted ranks, but nobody has opened the channel",
            where="security.channel",
            remedy="call mpidl.security.channel.open_channel before, or set MPIDL_CHANNEL",
        )
