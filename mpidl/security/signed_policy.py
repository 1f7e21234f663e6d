"""The site's policy on disk: policy.toml, and policy.toml.sig, signed with the root's key.

A policy that was changed, or an older one put back, is refused, as is one without a signature.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from mpidl.errors import SecurityError
from mpidl.security import jws
from mpidl.security.authority import Authority
from mpidl.security.identity import Trust
from mpidl.security.keystore import read_public, site_folder, write_public
from mpidl.security.policy import MOST_BYTES, Policy, parse_policy

TYPE = "mpidl-policy+jwt"
RESIGN = "find out who changed it; then sign it with 'mpidl policy sign'"


class Statement(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What is signed of a policy.

    Attributes:
        sha256: Of its file.
        site: For which it is.
        version: Its version.
    """

    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    site: Annotated[str, msgspec.Meta(max_length=64)]
    version: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]


def policy_file() -> Path:
    """The site's policy."""
    return site_folder() / "policy.toml"


def signature_file(path: Path) -> Path:
    """Where the signature of a policy is."""
    return path.with_name(f"{path.name}.sig")


def sign_policy(path: Path, authority: Authority) -> Policy:
    """Sign a policy.

    Raises:
        ConfigError: It is malformed.
        SecurityError: It is of another site, or others could change it.
        DataError: It cannot be read.
        OSError: Its signature cannot be written.
    """
    content = read_public(path, MOST_BYTES)
    policy = parse_policy(content, str(path))
    _check_site(policy, authority.name.site, path)
    text = jws.sign(TYPE, msgspec.json.encode(_statement(content, policy)), authority.key)
    write_public(signature_file(path), text.encode())
    return policy


def load_policy(trust: Trust, path: Path | None = None) -> Policy:
    """The site's policy.

    Args:
        trust: The site's root.
        path: Its file (default: policy.toml in the site's folder).

    Raises:
        ConfigError: It is malformed.
        SecurityError: It is not the one that the site has signed last.
        DataError: A file cannot be read.
    """
    path = path or policy_file()
    content = read_public(path, MOST_BYTES)
    signature = signature_file(path)
    if not signature.exists():
        raise SecurityError(
            "is not signed", where=str(path), remedy="read it, then sign it: 'mpidl policy sign'"
        )
    message = jws.parse(read_public(signature, jws.MOST_BYTES), TYPE, str(signature))
    key = trust.root.public_key()
    assert isinstance(key, Ed25519PublicKey)  # `Trust.load` has seen to it
    try:
        statement = msgspec.json.decode(message.verify(key), type=Statement)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise jws.malformed(str(signature)) from error
    if not hmac.compare_digest(statement.sha256, hashlib.sha256(content).hexdigest()):
        raise SecurityError("was changed after it was signed", where=str(path), remedy=RESIGN)
    policy = parse_policy(content, str(path))
    _check_site(policy, trust.site, path)
    trust.seen.check("policy", policy.rules.version, str(path))
    return policy


def _statement(content: bytes, policy: Policy) -> Statement:
    digest = hashlib.sha256(content).hexdigest()
    return Statement(digest, policy.rules.site, policy.rules.version)


def _check_site(policy: Policy, site: str, path: Path) -> None:
    if policy.rules.site != site:
        raise SecurityError(
            f"is of the site {policy.rules.site}, not of {site}",
            where=str(path),
            remedy="correct its 'site', or use the policy of this site",
        )
