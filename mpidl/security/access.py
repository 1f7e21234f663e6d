"""Where identity meets policy: may this process do that? Also, trust that follows the site's files.

Who holds plain data and keys is not stopped by a check in a process of their own: what a policy
refuses must also be sealed, or behind a server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mpidl.errors import ConfigError
from mpidl.security.identity import Trust, load_identity
from mpidl.security.keystore import site_folder
from mpidl.security.names import Kind, Purpose
from mpidl.security.policy import Decision, Policy
from mpidl.security.signed_policy import load_policy, policy_file, signature_file
from mpidl.security.subject import Subject

# What a process shows that it is, by the kind of its identity
PURPOSE: dict[Kind, Purpose] = {
    "person": "login",
    "service": "login",
    "node": "server",
    "job": "job-rank",
}
PAUSE = 1.0  # seconds between looks at the site's files


@dataclass(frozen=True)
class Access:
    """What one subject may do.

    Attributes:
        subject: Who asks.
        policy: The site's.
    """

    subject: Subject
    policy: Policy

    def require(self, right: str, object: str = "", at: datetime | None = None) -> Decision:
        """The decision, if it is that the subject may do it.

        Args:
            right: One of `mpidl.security.policy.RIGHTS`.
            object: The data set (`mpidl.security.objects.data_object`) or model.
            at: When, with time zone (default: now).

        Raises:
            SecurityError: It may not; the message says what lacks.
            ConfigError: There is no such right.
        """
        return self.policy.require(self.subject, right, object, at)


def open_access(folder: Path, passphrase: bytes | None = None) -> Access:
    """What the holder of an identity may do.

    Args:
        folder: Of the identity.
        passphrase: Of its keys; asked for if they are encrypted and there is none.

    Raises:
        SecurityError: The identity is not valid, or the policy is not the site's.
        ConfigError: It may stand for nobody; or the policy is malformed.
        DataError: A file cannot be read.
    """
    identity = load_identity(folder, passphrase)
    if identity.kind not in PURPOSE:
        raise ConfigError(
            f"a {identity.kind} certificate stands for nobody",
            where=str(folder),
            remedy="name the folder of a person, a service, a node or a job",
        )
    trust = Trust.load()
    return Access(trust.verify(identity.chain, PURPOSE[identity.kind]), load_policy(trust))


class SiteFiles:
    """The site's trust and policy as they are now: a server reads them again when they change.

    A change that is not valid raises at each look until it is mended: nothing is answered from
    what was valid before.

    Args:
        clock: Seconds, growing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._looked = -PAUSE
        self._state: object = None
        self._found: tuple[Trust, Policy] | None = None

    def load(self) -> tuple[Trust, Policy]:
        """Trust and policy; looks at the files once a second at most.

        Raises:
            SecurityError: They are not the site's, or older than others that were seen.
            ConfigError: The policy is malformed.
            DataError: They cannot be read.
        """
        with self._lock:
            if self._found is not None and self._clock() - self._looked < PAUSE:
                return self._found
            state = _state()
            if self._found is None or state != self._state:
                self._found = None
                trust = Trust.load()
                self._found = trust, load_policy(trust)
                self._state = state
            self._looked = self._clock()
            return self._found


def _state() -> object:
    """What changes when a file of the site does."""
    policy = policy_file()
    files = (
        site_folder() / "root.pem",
        site_folder() / "revoked.crl",
        policy,
        signature_file(policy),
    )
    states = []
    for path in files:
        try:
            found = path.stat()
            states.append((found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode))
        except OSError as error:
            states.append((error.errno or 0, 0, 0, 0))
    return states
