"""A server that asks who is there: TLS with certificates of a site, unmodified clients."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cryptography")

import tritonclient.grpc as grpc_client
from tritonclient.utils import InferenceServerException

from tests.jobs.helpers import mpidl
from tests.jobs.test_serve import IMAGES, Serving, expected, folder, tensor  # noqa: F401
from tests.security.conftest import cheap_passphrases  # noqa: F401
from tests.security.site import Site, make_site, write

POLICY = """
version = 1
site = "cluster.example.org"
[[grants]]
role = "admin"
subjects = ["person:ada"]
[[grants]]
role = "client"
subjects = ["token:*"]
"""


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    cheap_passphrases: None,
) -> Iterator[Site]:
    from mpidl.security.signed_policy import sign_policy
    from mpidl.security.tokens import make_token

    with pytest.MonkeyPatch.context() as patch:
        made = make_site(tmp_path_factory.mktemp("secured"), patch)
        made.issue("service", "serve", hosts=("localhost", "127.0.0.1"))
        write(made.folder / "site" / "policy.toml", POLICY.encode())
        sign_policy(made.folder / "site" / "policy.toml", made.authority)
        text = make_token(made.identity("portal"), "lab", "serve", ["client"], timedelta(hours=1))
        write(made.folder / "lab.token", text.encode())
        yield made


@pytest.fixture(scope="module")
def server(site: Site, folder: Path) -> Iterator[Serving]:
    made = Serving(folder / "run", options=("--identity", "serve"))
    yield made
    job = made.stop()
    assert job.status == 75, job.err


def root(site: Site) -> str:
    return str(site.folder / "site" / "root.pem")


def test_rest(server: Serving, site: Site) -> None:
    context = ssl.create_default_context(cafile=root(site))
    token = (site.folder / "lab.token").read_text()

    def get(path: str, headers: dict[str, str]) -> int:
        request = urllib.request.Request(f"https://{server.http}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, context=context, timeout=30) as answer:
                status: int = answer.status
                return status
        except urllib.error.HTTPError as error:
            assert json.load(error)["error"]
            return error.code

    bearer = {"Authorization": f"Bearer {token}"}
    assert get("/v2/health/ready", {}) == 200
    assert [get("/v2/models/run", each) for each in ({}, bearer)] == [401, 200]
    assert get("/metrics", bearer) == 403
    assert get("/v2/models/run", {"Authorization": f"Bearer {token[:-2]}AA"}) == 401


@pytest.mark.parametrize("port", ["http", "grpc"])
def test_nothing_but_tls_1_3(server: Serving, site: Site, port: str) -> None:
    address = getattr(server, port).split(":")
    for version, works in ((ssl.TLSVersion.TLSv1_3, True), (ssl.TLSVersion.TLSv1_2, False)):
        context = ssl.create_default_context(cafile=root(site))
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(["h2", "http/1.1"])
        with socket.create_connection((address[0], int(address[1])), timeout=10) as plain:
            try:
                with context.wrap_socket(plain, server_hostname="localhost") as secure:
                    assert works and secure.version() == "TLSv1.3"
            except (ssl.SSLError, ConnectionResetError):
                assert not works
    connection = http.client.HTTPConnection(*address, timeout=10)  # and nothing in the clear
    with pytest.raises((http.client.HTTPException, ConnectionResetError)):
        connection.request("GET", "/v2/health/ready")
        connection.getresponse()


def test_grpc(server: Serving, site: Site, expected: np.ndarray) -> None:
    token = (site.folder / "lab.token").read_text()
    headers = {"authorization": f"Bearer {token}"}
    with grpc_client.InferenceServerClient(
        server.grpc, ssl=True, root_certificates=root(site)
    ) as client:
        assert client.is_server_live()
        found = client.infer("run", [tensor(grpc_client, IMAGES)], headers=headers)
        np.testing.assert_allclose(found.as_numpy("probability"), expected, atol=1e-5)
        for call, status in (
            (lambda: client.infer("run", [tensor(grpc_client, IMAGES)]), "UNAUTHENTICATED"),
            (lambda: client.get_model_repository_index(), "UNAUTHENTICATED"),
            (lambda: client.unload_model("run", headers=headers), "PERMISSION_DENIED"),
            (lambda: client.get_inference_statistics(headers=headers), "PERMISSION_DENIED"),
        ):
            with pytest.raises(InferenceServerException, match=status):
                call()
        assert len(client.get_model_repository_index(headers=headers).models) == 1


def test_query(
    server: Serving,
    site: Site,
    folder: Path,
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    ask = ("query", str(folder / "run"), "--input", str(tmp_path / "x.npy"), "--json")
    job = mpidl(1, *ask)
    assert job.status == 1 and "does not know who you are" in job.err, job.err
    results = []
    for options in (("--token", str(site.folder / "lab.token")), ("--identity", "ada")):
        job = mpidl(1, *ask, *options)
        assert job.status == 0, job.err
        results.append(job.result["outputs"])
    assert results[0] == results[1]
    (site.folder / "lab.token").chmod(0o644)
    job = mpidl(1, *ask, "--token", str(site.folder / "lab.token"))
    (site.folder / "lab.token").chmod(0o600)
    assert job.status == 1 and "others can read it" in job.err
    # endpoint.json may name a token
    place = folder / "run" / "endpoint.json"
    before = place.read_bytes()
    tree = json.loads(before)
    place.write_text(json.dumps(tree | {"token_file": str(site.folder / "lab.token")}))
    job = mpidl(1, *ask)
    place.write_bytes(before)
    assert job.status == 0 and job.result["outputs"] == results[0], job.err
    # another server at the same place is told nothing
    tree["fingerprint"] = "0" * 64
    place.write_text(json.dumps(tree))
    job = mpidl(1, *ask, "--token", str(site.folder / "lab.token"))
    place.write_bytes(before)
    assert job.status == 1 and "another certificate" in job.err, job.err
