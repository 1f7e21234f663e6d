"""Recipients of a site: its certificates decide."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpidl.errors import SecurityError
from mpidl.security import sealed_file, sealing, sealing_keys
from tests.security.sealing.identities import make_identity
from tests.security.site import Site, make_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    with pytest.MonkeyPatch.context() as patch:
        made = make_site(tmp_path_factory.mktemp("site"), patch)
        made.use(patch)
        made.issue("person", "alice")
    return made


def test_people_of_the_site(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.use(monkeypatch)
    sealing_keys.forget()
    path = tmp_path / "file"
    sealing.write_sealed(path, b"content", sealing_keys.envelope_for(["alice"]))
    sealing_keys.forget()
    assert sealed_file.read_bytes(path) == b"content"
    monkeypatch.setenv("MPIDL_KEYS", str(tmp_path / "keys"))  # of somebody else of this site
    sealing_keys.forget()
    assert sealing_keys.find_recipient("alice").name == "alice"
    make_identity(tmp_path / "keys", "mallory")
    make_identity(tmp_path / "keys", "bob")
    for name in ("mallory", str(tmp_path / "keys" / "bob" / "sealing-certificate.pem")):
        with pytest.raises(SecurityError):
            sealing_keys.find_recipient(name)
    (tmp_path / "keys" / "mallory" / "sealing-certificate.pem").write_bytes(
        (site.keys("alice") / "sealing-certificate.pem").read_bytes()
    )
    with pytest.raises(SecurityError, match="is of alice, not of mallory"):
        sealing_keys.find_recipient("mallory")
    sealing_keys.forget()
