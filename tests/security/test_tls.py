"""Other programs' TLS with our certificates: OpenSSL (Python) and BoringSSL (gRPC)."""

from __future__ import annotations

import socket
import ssl
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

from mpidl.security import keystore
from mpidl.security.certificates import dump_chain
from tests.security.site import Site

HOST = "portal.example.org"
LIMIT = 20  # seconds in which a handshake ends


def files(site: Site, name: str, folder: Path, use: str) -> tuple[Path, Path]:
    """Certificates and an unencrypted key."""
    identity = site.identity(name)
    key, chain = (identity.key, identity.chain)
    if use == "tls":
        key, chain = identity.tls_key, identity.tls_chain
    certificate, secret = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(dump_chain(chain))
    keystore.write_private(secret, keystore.dump_key(key, None))
    return certificate, secret


def side(site: Site, name: str, folder: Path, use: str, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=dump_chain((site.authority.root,)).decode())
    context.load_cert_chain(*files(site, name, folder, use))
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def meet(site: Site, folder: Path, client: str, host: str, use: str = "key") -> Any:
    """What the server knows of the client after a handshake."""
    ends = socket.socketpair()
    for end in ends:
        end.settimeout(LIMIT)
    found: list[Any] = []

    def serve() -> None:
        try:
            context = side(site, "portal", folder, use, True)
            with context.wrap_socket(ends[0], server_side=True) as wrapped:
                found.append(wrapped.getpeercert(binary_form=True))
                wrapped.sendall(b"x")
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        context = side(site, client, folder, use, False)
        with context.wrap_socket(ends[1], server_hostname=host) as wrapped:
            wrapped.recv(1)
    except OSError as error:
        found.append(error)
    finally:
        thread.join(LIMIT)
        for end in ends:
            end.close()
    return found


@pytest.mark.parametrize("use", ["key", "tls"])
def test_people_and_services_meet_over_tls(site: Site, tmp_path: Path, use: str) -> None:
    ada = site.identity("ada")
    (seen,) = meet(site, tmp_path, "ada", HOST, use)
    chain = ada.tls_chain if use == "tls" else ada.chain
    assert seen == dump_der(chain[0])
    (seen,) = meet(site, tmp_path, "ada", "10.0.0.1", use)
    assert seen == dump_der(chain[0])


def dump_der(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.DER))


def test_a_job_cannot_log_in(site: Site, tmp_path: Path) -> None:
    """OpenSSL refuses its certificate already: it is not for clients."""
    found = meet(site, tmp_path, "run-7", HOST)
    assert any("unsuitable certificate purpose" in str(each) for each in found)


def test_a_server_of_another_name_is_refused(site: Site, tmp_path: Path) -> None:
    found = meet(site, tmp_path, "ada", "other.example.org")
    assert any("ostname mismatch" in str(each) for each in found)


def test_grpc_speaks_tls_with_our_certificates(site: Site, tmp_path: Path) -> None:
    grpc = pytest.importorskip("grpc")
    root = dump_chain((site.authority.root,))
    pairs = {}
    for name in ("portal", "ada"):
        certificate, key = files(site, name, tmp_path, "tls")
        pairs[name] = key.read_bytes(), certificate.read_bytes()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    accepted = grpc.ssl_server_credentials([pairs["portal"]], root, True)
    port = server.add_secure_port("localhost:0", accepted)
    server.start()
    try:
        names = [("grpc.ssl_target_name_override", HOST)]
        credentials = grpc.ssl_channel_credentials(root, *pairs["ada"])
        channel = grpc.secure_channel(f"localhost:{port}", credentials, names)
        with channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/a/b")(b"", timeout=LIMIT)
    finally:
        server.stop(0)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, "the handshake succeeded"
