"""The certificate of a job: the one place where encrypted ranks meet identities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpidl.errors import SecurityError
from mpidl.extras import load_extra
from mpidl.security.handshake import Credentials
from mpidl.settings import JOB_CERTIFICATE

if TYPE_CHECKING:
    from cryptography import x509


def load_credentials(named: str = "") -> Credentials:
    """The certificate and key of this job, and whom it believes: the site's root.

    Args:
        named: A folder, or the name of one in the folder of keys; by default
            `MPIDL_JOB_CERTIFICATE`.

    Raises:
        SecurityError: There is none, it is not valid, or others could read the key.
    """
    named = named or JOB_CERTIFICATE.value
    if not named:
        raise SecurityError(
            "encrypted ranks need a certificate of the job, and none is named",
            where="security.channel.certificate",
            remedy=f"make one with 'mpidl keys issue --job', and set {JOB_CERTIFICATE.name} to its "
            "folder",
        )
    load_extra("cryptography", "encrypted ranks")
    from mpidl.security.identity import Trust, load_identity
    from mpidl.security.signer import find_folder

    own = load_identity(find_folder(named))
    trust = Trust.load()

    def verify(chain: Sequence[x509.Certificate]) -> str:
        subject = trust.verify(chain, "job-rank")
        return f"{subject.site}/{subject.submitter}/{subject.name}"

    return Credentials(own.chain, own.key, verify(own.chain), verify)
