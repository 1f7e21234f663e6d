"""The section `[security]` of a run."""

from __future__ import annotations

from mpidl.options import Place, Section
from mpidl.security.channel import ChannelConfig


class SecurityConfig(Section, frozen=True):
    """What protects a run.

    Attributes:
        channel: How messages between ranks are protected.
    """

    channel: ChannelConfig = ChannelConfig.read({}, Place())
