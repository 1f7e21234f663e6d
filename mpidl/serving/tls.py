"""TLS 1.3 of the server and its clients, with certificates of the site."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl.extras import load_extra

if TYPE_CHECKING:
    from mpidl.security.identity import Identity, Trust

# gRPC's Python API cannot ask for TLS 1.3. Of TLS 1.2 it is left with suites that need an RSA key,
# and the keys here are ECDSA: no handshake succeeds but one of TLS 1.3.
SUITES = "GRPC_SSL_CIPHER_SUITES"
ONLY_RSA = "ECDHE-RSA-AES128-GCM-SHA256"


def refuse_old_tls() -> None:
    """Let gRPC speak TLS 1.3 only; before it is imported, and for the whole process."""
    os.environ[SUITES] = ONLY_RSA


def _context(protocol: int, trust: Trust) -> ssl.SSLContext:
    from cryptography.hazmat.primitives.serialization import Encoding

    made = ssl.SSLContext(protocol)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.load_verify_locations(cadata=trust.root.public_bytes(Encoding.PEM).decode())
    return made


def _use(context: ssl.SSLContext, folder: Path, passphrase: bytes | None) -> None:
    """Load the key for TLS of an identity from its files."""
    context.load_cert_chain(folder / "tls-certificate.pem", folder / "tls.pem", passphrase)


def server_context(
    trust: Trust, clients: str, folder: Path, passphrase: bytes | None
) -> ssl.SSLContext:
    """The context of the server of REST.

    Args:
        trust: The site's root.
        clients: What they show, see `SecuritySettings`.
        folder: Of the server's identity.
        passphrase: Of its keys.
    """
    made = _context(ssl.PROTOCOL_TLS_SERVER, trust)
    _use(made, folder, passphrase)
    made.verify_mode = {
        "certificates": ssl.CERT_REQUIRED,
        "tokens": ssl.CERT_NONE,
        "either": ssl.CERT_OPTIONAL,
    }[clients]
    made.set_alpn_protocols(["http/1.1"])
    return made


def client_context(trust: Trust, folder: Path | None, passphrase: bytes | None) -> ssl.SSLContext:
    """The context of a client of REST; it believes services of the site, whatever their host.

    Args:
        trust: The site's root.
        folder: Of the client's identity; None: it shows no certificate.
        passphrase: Of its keys.
    """
    made = _context(ssl.PROTOCOL_TLS_CLIENT, trust)
    made.check_hostname = False  # jobs run on any node: the name in the certificate is checked
    if folder is not None:
        _use(made, folder, passphrase)
    return made


def server_credentials(identity: Identity, trust: Trust, clients: str) -> Any:
    """The credentials of the server of gRPC.

    Where clients may show either, gRPC takes tokens: it cannot ask for a certificate without
    insisting on it.
    """
    grpc = load_extra("grpc", "serving over gRPC")
    key, chain, root = pem_files(identity, trust)
    return grpc.ssl_server_credentials([(key, chain)], root, clients == "certificates")


def pem_files(identity: Identity, trust: Trust) -> tuple[bytes, bytes, bytes]:
    """Key, certificates and root as gRPC takes them."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    from mpidl.security.certificates import dump_chain

    assert identity.tls_key is not None
    key = identity.tls_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return key, dump_chain(identity.tls_chain), dump_chain((trust.root,))
