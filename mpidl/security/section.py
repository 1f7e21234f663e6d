"""The section `[security]`: what protects a run."""

from __future__ import annotations

from mpidl.options import Place, Section
from mpidl.security.channel import ChannelConfig


class SecurityConfig(Section, frozen=True):
    """What protects a run.

    Attributes:
        channel: How messages between ranks are protected.
        key_folder: Folder of identities, or of one, whose keys open sealed files; by default that
            of MPIDL_KEYS.
        seal_for: Recipients of the checkpoints: names of identities in that folder, or paths of
            sealing certificates. A resumed run then takes sealed checkpoints only. By default
            checkpoints are not sealed.
        require_sealed: Refuse data and checkpoints that are not sealed.
    """

    channel: ChannelConfig = ChannelConfig.read({}, Place())
    key_folder: str = ""
    seal_for: tuple[str, ...] = ()
    require_sealed: bool = False

    def check(self, place: Place) -> None:
        """A recipient is named once."""
        if len(set(self.seal_for)) < len(self.seal_for):
            raise place.error(
                f"{place.name('seal_for')} names a recipient twice",
                "seal_for",
                remedy="name each once",
            )

    def apply(self) -> None:
        """Use these keys, and refuse what is not sealed, in this process from now on.

        Raises:
            SecurityError: A key can be read by others.
        """
        if not (self.key_folder or self.seal_for or self.require_sealed):
            return
        from mpidl.security import sealed_file, sealing_keys

        if self.key_folder:
            sealing_keys.use(self.key_folder)
        sealed_file.require(self.require_sealed)
        for name in self.seal_for:
            sealing_keys.find_recipient(name)
