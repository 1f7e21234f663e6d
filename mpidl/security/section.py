"""The section `[security]`: what protects a run, and what it leaves behind."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, ClassVar, Self

from msgspec.structs import replace

from mpidl.comm.context import Context
from mpidl.errors import ConfigError, os_remedy
from mpidl.options import SET, Place, Positive, Section
from mpidl.security.channel import ChannelConfig
from mpidl.settings import SECURITY


class AuditConfig(Section, frozen=True):
    """The audit log. The section's `identity` signs its heads.

    Attributes:
        folder: Where each job writes a log of its own; empty: there is no audit.
        heads: Where signed heads are kept, best out of reach of those who can write to folder; by
            default in folder.
        every: Records between signed heads.
    """

    NEEDS: ClassVar[dict[str, tuple[str, tuple[Any, ...]]]] = {
        "heads": ("folder", SET),
        "every": ("folder", SET),
    }

    folder: str = ""
    heads: str = ""
    every: Positive = 64


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
        require_signatures: Use no data set, checkpoint or weights unless somebody in trusted has
            signed it.
        trusted: Whom signatures are accepted from: "site", all in the site who may sign; or PEM
            files of public keys, of other root certificates and their revocation lists.
        identity: Who signs: a folder in `MPIDL_KEYS`, or the PEM file of a private key; by default
            the job (`MPIDL_JOB_CERTIFICATE`), else the identity with the user's name.
        sign_checkpoints: Sign each checkpoint as it is written.
        enforce_policy: Ask the site's policy whether `identity` may train, resume, export, and
            read each data set; best in the file of `MPIDL_SECURITY`, which holds for every command.
        audit: The audit log.
    """

    channel: ChannelConfig = ChannelConfig.read({}, Place())
    key_folder: str = ""
    seal_for: tuple[str, ...] = ()
    require_sealed: bool = False
    require_signatures: bool = False
    trusted: tuple[str, ...] = ()
    identity: str = ""
    sign_checkpoints: bool = False
    enforce_policy: bool = False
    audit: AuditConfig = AuditConfig()

    def check(self, place: Place) -> None:
        """A recipient is named once; signatures need somebody who is believed."""
        if len(set(self.seal_for)) < len(self.seal_for):
            raise place.error(
                f"{place.name('seal_for')} names a recipient twice",
                "seal_for",
                remedy="name each once",
            )
        if self.require_signatures and not self.trusted:
            raise place.error(
                f"{place.name('require_signatures')} is true, but nobody is trusted",
                "require_signatures",
                remedy=f'set {place.name("trusted")} = ["site"], or name PEM files of public keys',
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

    @property
    def is_on(self) -> bool:
        """Whether anything of signatures and audit is wanted."""
        return self.require_signatures or self.sign_checkpoints or bool(self.audit.folder)

    def within(self, site: SecurityConfig) -> Self:
        """These settings where the site's leave a choice: a run cannot weaken what holds for all.

        Args:
            site: What holds for every command.
        """
        changes: dict[str, Any] = {"identity": self.identity or site.identity}
        if site.require_signatures:
            changes |= {"require_signatures": True, "trusted": site.trusted}
        if site.require_sealed:
            changes["require_sealed"] = True
        if site.seal_for:
            changes |= {"seal_for": site.seal_for, "key_folder": self.key_folder or site.key_folder}
        if site.enforce_policy:
            changes["enforce_policy"] = True
        if site.sign_checkpoints:
            changes["sign_checkpoints"] = True
        if site.audit.folder:
            changes["audit"] = site.audit
        return replace(self, **changes)


def site_security() -> SecurityConfig:
    """What `MPIDL_SECURITY` says, which holds for every command; nothing where it is not set.

    Rank 0 asks, for all ranks: launchers do not pass all variables to other nodes.

    Raises:
        ConfigError: The file cannot be read, or a setting is impossible.
    """
    if not SECURITY.value:
        return SecurityConfig()
    path = Path(SECURITY.value)
    try:
        tree = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}",
            where=f"{SECURITY.name}: {path}",
            remedy=os_remedy(error.errno or 0),
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"is not valid TOML: {error}", where=str(path), remedy="correct that line"
        ) from error
    place = Place(("security",), origin=lambda name: str(path))
    if set(tree) != {"security"} or not isinstance(tree["security"], dict):
        raise place.error(
            "has to be one section [security]", "trusted", remedy="move all settings into it"
        )
    return SecurityConfig.read(tree["security"], place)


def shared_security(context: Context) -> SecurityConfig:
    """`site_security` of rank 0, on every rank. Collective.

    Raises:
        ConfigError: The file cannot be read, or a setting is impossible.
    """
    tree = context.on_root(
        lambda: site_security().to_tree(), "reading the site's security settings", dict[str, Any]
    )
    return SecurityConfig.read(tree, Place(("security",)))
