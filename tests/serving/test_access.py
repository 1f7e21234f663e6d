"""Who may ask a server: certificates, tokens, the policy, limits; without sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.serialization import Encoding

from mpidl.errors import SecurityError
from mpidl.security.access import SiteFiles
from mpidl.security.signed_policy import sign_policy
from mpidl.security.tokens import make_token
from mpidl.serving import access as access_module
from mpidl.serving.access import Peer, open_door
from mpidl.serving.errors import ServingError
from mpidl.serving.http_access import CERTIFICATE
from mpidl.serving.secured import SecuredAccess
from mpidl.serving.settings import SecuritySettings
from tests.security.conftest import cheap_passphrases  # noqa: F401
from tests.security.site import Site, make_site, write
from tests.serving.helpers import FakeLink, Made

POLICY = """
version = {version}
site = "cluster.example.org"
[[grants]]
role = "admin"
subjects = ["person:ada"]
[[grants]]
role = "client"
subjects = ["person:bob"]
models = ["m"]
[[grants]]
role = "client"
subjects = ["token:*"]
models = ["{models}"]
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = make_site(tmp_path, monkeypatch)
    made.issue("service", "serve", hosts=("localhost",))
    set_policy(made, 1)
    yield made


def set_policy(site: Site, version: int, models: str = "m") -> None:
    path = site.folder / "site" / "policy.toml"
    write(path, POLICY.format(version=version, models=models).encode())
    sign_policy(path, site.authority)


class Clock:
    """Seconds of the test."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Secured:
    """A server with access, and what it has recorded."""

    def __init__(self, site: Site, **settings: Any) -> None:
        self.clock = Clock()
        self.records: list[tuple[str, dict[str, Any]]] = []
        self.access = SecuredAccess(
            site.identity("serve"),
            SiteFiles(self.clock),
            SecuritySettings(identity="serve", **settings),
            lambda event, **fields: self.records.append((event, fields)),
            self.clock,
        )

    def certificate(self, site: Site, name: str, kind: str = "tls_chain") -> Peer:
        chain = getattr(site.identity(name), kind)
        return Peer("10.0.0.2", chain[0].public_bytes(Encoding.DER))


def token(site: Site, audience: str = "serve", signer: str = "portal", **options: Any) -> Peer:
    life = options.pop("life", timedelta(hours=1))
    text = make_token(site.identity(signer), "lab", audience, ["client"], life, **options)
    return Peer("10.0.0.3", None, f"Bearer {text}")


def test_certificates_and_tokens(site: Site) -> None:
    made = Secured(site)
    ada = made.access.admit(made.certificate(site, "ada"))
    assert str(ada) == "person:ada" and made.access.may(ada, "load", "m")
    bob = made.access.admit(made.certificate(site, "bob"))
    assert made.access.may(bob, "infer", "m") and not made.access.may(bob, "infer", "n")
    lab = made.access.admit(token(site))
    assert made.access.may(lab, "infer", "m") and not made.access.may(lab, "metrics")
    with pytest.raises(ServingError) as caught:
        made.access.require(lab, "load", "m")
    assert caught.value.status == 403 and caught.value.code == "PERMISSION_DENIED"
    assert [event for event, _ in made.records] == ["access.denied"]
    for name in ("../m", "m\0", "m/../n", "", "*", "M" * 2000):
        assert not name or not made.access.may(bob, "infer", name)


def refused(made: Secured, peer: Peer) -> str:
    """What the record says of a refusal; the client is always told the same."""
    with pytest.raises(ServingError) as caught:
        made.access.admit(peer)
    assert caught.value.status == 401
    assert caught.value.text == (
        "the server does not know who you are; show a certificate or a token of its site that is "
        "valid now"
    )
    event, fields = made.records[-1]
    assert event == "access.refused" and fields["address"] == peer.address
    return str(fields["error"])


def test_refusals_say_the_same_to_clients_and_the_reason_to_the_record(site: Site) -> None:
    made = Secured(site, failures=0)
    assert "neither" in refused(made, Peer("10.0.0.2"))
    assert "neither" in refused(made, Peer("10.0.0.2", None, "Basic YTpi"))
    assert "neither" in refused(made, Peer("10.0.0.2", None, "Bearer " + "a" * 20_000))
    assert "malformed" in refused(made, Peer("10.0.0.2", b"0\x82"))
    assert "is for other" in refused(made, token(site, "other"))
    assert refused(made, made.certificate(site, "run-7", "chain"))  # a job does not log in
    assert refused(made, token(site, signer="bob"))  # may sign no tokens
    from datetime import UTC, datetime

    assert "expired" in refused(made, token(site, at=datetime.now(UTC) - timedelta(hours=3)))
    for wrong in ("Bearer", "Bearer ", "bearer a.b.c", "Bearer \u00e9", "Bearer a b"):
        assert refused(made, Peer("10.0.0.2", None, wrong))


def test_what_clients_show_can_be_limited(site: Site) -> None:
    only = Secured(site, clients="certificates", failures=0)
    assert "neither" in refused(only, token(site))
    only.access.admit(only.certificate(site, "bob"))
    only = Secured(site, clients="tokens", failures=0)
    assert "neither" in refused(only, only.certificate(site, "bob"))
    only.access.admit(token(site))


def test_revocation_and_policy_take_effect_while_it_runs(site: Site) -> None:
    made = Secured(site, failures=0)
    bob, lab = made.certificate(site, "bob"), token(site)
    made.access.admit(bob)
    subject = made.access.admit(lab)
    serial = site.identity("bob").tls_chain[0].serial_number
    site.authority.revoke({serial})
    made.clock.now += 2
    assert "revoked" in refused(made, bob)
    assert made.access.may(subject, "infer", "m")
    set_policy(site, 2, "other")
    made.clock.now += 2
    assert not made.access.may(made.access.admit(lab), "infer", "m")
    # files that are not the site's: nobody comes in, and nobody hears why
    with open(site.folder / "site" / "policy.toml", "a") as file:
        file.write("\n# changed")
    made.clock.now += 2
    with pytest.raises(ServingError) as caught:
        made.access.admit(lab)
    assert caught.value.status == 503 and "policy" not in caught.value.text
    assert made.records[-1][0] == "access.closed"


def test_limits(site: Site) -> None:
    made = Secured(site, requests_per_second=10.0, burst=3, failures=4, lock_seconds=30.0)
    bob = made.certificate(site, "bob")
    for _ in range(3):
        made.access.admit(bob)
    with pytest.raises(ServingError) as caught:
        made.access.admit(bob)
    assert caught.value.status == 429
    made.clock.now += 0.11
    made.access.admit(bob)
    for _ in range(4):
        refused(made, Peer("10.0.0.9")) if _ < 3 else None
    with pytest.raises(ServingError) as caught:
        made.access.admit(Peer("10.0.0.9"))
    assert caught.value.status == 401 and made.records[-1][0] == "access.locked"
    with pytest.raises(ServingError) as caught:
        made.access.admit(Peer("10.0.0.9"))
    assert caught.value.status == 429
    made.clock.now += 31
    assert refused(made, Peer("10.0.0.9"))


def test_a_server_needs_its_own_certificate(site: Site) -> None:
    with pytest.raises(SecurityError):
        SecuredAccess(
            site.identity("bob"),
            SiteFiles(),
            SecuritySettings(identity="bob"),
            lambda event, **fields: None,
        )
    assert isinstance(open_door(SecuritySettings(), print).access, access_module.OpenAccess)


# --- over REST ---
ROUTES = [
    ("GET", "/v2/health/ready", "", None),
    ("GET", "/v2", "any", None),
    ("GET", "/metrics", "metrics", None),
    ("GET", "/v2/models/stats", "metrics", None),
    ("GET", "/v2/models/m/stats", "metrics", None),
    ("GET", "/v2/models/m/versions/1/stats", "metrics", None),
    ("GET", "/v2/models/m", "infer", None),
    ("GET", "/v2/models/m/config", "infer", None),
    ("GET", "/v2/models/m/versions/1/ready", "infer", None),
    ("POST", "/v2/models/m/infer", "infer", b"{}"),
    ("POST", "/v2/models/m/versions/1/infer", "infer", b"{}"),
    ("POST", "/v2/models/m/generate", "infer", b"{}"),
    ("POST", "/v2/models/m/versions/1/generate_stream", "infer", b"{}"),
    ("POST", "/v2/repository/models/m/load", "load", b""),
    ("POST", "/v2/repository/models/m/unload", "load", b""),
]


@pytest.mark.parametrize(("method", "path", "right", "body"), ROUTES)
def test_every_route_asks_for_its_right(
    site: Site, tmp_path: Path, method: str, path: str, right: str, body: bytes | None
) -> None:
    """Nobody, a client of another model, a client of this one, an administrator."""
    set_policy(site, 2, "other")
    secured = Secured(site, failures=0)

    async def run() -> None:
        made = Made(tmp_path, FakeLink())
        try:
            await made.repository.load("m")
            made.server.access = secured.access
            found = []
            for who in (None, token(site), "bob", "ada"):
                state = {}
                headers = []
                if isinstance(who, str):
                    state = {CERTIFICATE: secured.certificate(site, who).certificate}
                elif who is not None:
                    headers = [(b"authorization", str(who.authorization).encode())]
                found.append(await ask(made, method, path, body, state, headers))
            if not right:
                assert found == [200] * 4
                return
            nobody, stranger, client, admin = found
            assert nobody == 401 and admin not in (401, 403)
            assert (stranger == 403) == (right != "any")
            assert (client == 403) == (right in ("metrics", "load"))
        finally:
            made.dispatcher.close()

    asyncio.run(run())


async def ask(
    made: Made, method: str, path: str, body: bytes | None, state: Any, headers: Any
) -> int:
    sent: list[dict[str, Any]] = []
    waiting = [{"type": "http.request", "body": body or b""}]

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": headers, "state": state}
    await made.application(scope | {"client": ("10.0.0.5", 1)}, receive, send)
    status: int = sent[0]["status"]
    return status


def test_the_index_lists_what_one_may_use(site: Site, tmp_path: Path) -> None:
    secured = Secured(site, failures=0)

    async def run() -> None:
        made = Made(tmp_path, FakeLink())
        try:
            await made.repository.load("m")
            made.server.access = secured.access
            text = str(token(site).authorization)
            _, body = await made.post("/v2/repository/index", authorization=text)
            assert [one["name"] for one in json.loads(body)] == ["m"]
            set_policy(site, 2, "other")
            secured.clock.now += 2
            _, body = await made.post("/v2/repository/index", authorization=text)
            assert json.loads(body) == []
        finally:
            made.dispatcher.close()

    asyncio.run(run())
