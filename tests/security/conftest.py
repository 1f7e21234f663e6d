"""A site with an authority, a person who submits jobs, a service that signs tokens, and a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.security.site import Site, make_site

pytest.importorskip("cryptography")


@pytest.fixture(scope="session", autouse=True)
def cheap_passphrases() -> None:
    """Files say how costly their passphrases are: the tests' need not be."""
    from mpidl.security import keystore

    keystore.SCRYPT_COST, keystore.SCRYPT_PARALLEL = 1 << 4, 1


@pytest.fixture(scope="session")
def shared_site(tmp_path_factory: pytest.TempPathFactory, cheap_passphrases: None) -> Site:
    """For tests that change no file of it."""
    with pytest.MonkeyPatch.context() as patch:
        return make_site(tmp_path_factory.mktemp("site"), patch)


@pytest.fixture
def site(shared_site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The shared one, where this test's environment points to."""
    shared_site.use(monkeypatch)
    return shared_site


@pytest.fixture
def own_site(shared_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A copy of its own."""
    site = shared_site.copy(tmp_path / "all")
    site.use(monkeypatch)
    return site
