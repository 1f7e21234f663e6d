"""`mpidl keys` and `mpidl policy` as people run them: the key ceremony, from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpidl.cli.keys import seconds
from mpidl.cli.main import main
from mpidl.cli.policy import DENIED
from mpidl.security.identity import load_identity, retired_sealing_keys
from mpidl.security.tokens import TokenVerifier
from tests.security.site import PASSPHRASE, Site, write

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def mpidl(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; returns its result, or the words of its error."""

    def run(*args: Any, status: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        found = main([*map(str, args), "--json"])
        out, err = capsys.readouterr()
        assert found == status, err
        assert PASSPHRASE.decode() not in out + err and "PRIVATE KEY" not in out + err
        result: dict[str, Any] = json.loads(out.splitlines()[-1]) if out else {}
        return result | {"error": err}

    return run


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No site yet."""
    monkeypatch.setenv("MPIDL_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("MPIDL_SITE", str(tmp_path / "site"))
    monkeypatch.setenv("MPIDL_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    write(tmp_path / "passphrase", PASSPHRASE)
    return tmp_path


def test_the_ceremony(empty: Path, tmp_path: Path, mpidl: Run) -> None:
    root = mpidl("keys", "init", "lab.example.org")["root"]
    assert len(root) == 64
    issued = mpidl("keys", "issue", "--person", "ada", "--submit", "--lifetime", "90d")
    assert set(issued["serials"]) == {
        "certificate",
        "tls-certificate",
        "signing-certificate",
        "sealing-certificate",
        "submit-certificate",
    }
    mpidl("keys", "issue", "--service", "portal", "--host", "p", "--tokens", "--no-passphrase")
    mpidl("keys", "issue", "--node", "node7", "--host", "node7", "--no-passphrase")
    out = tmp_path / "run" / "keys"
    assert mpidl("keys", "issue", "--job", "run-7", "--by", "ada", "--out", out)["name"] == (
        "job:run-7 of ada"
    )
    assert (out / "key.pem").stat().st_mode & 0o777 == 0o600
    shown = mpidl("keys", "show")
    assert [each["name"] for each in shown["identities"]] == [
        "person:ada",
        "node:node7",
        "service:portal",
    ]
    number = mpidl("keys", "revoke", "node7")["number"]
    assert number == 2
    shown = mpidl("keys", "show", status=1)
    assert "was revoked" in shown["error"]


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Goes to another machine."""

    def go(folder: Path) -> None:
        monkeypatch.setenv("MPIDL_KEYS", str(folder / "keys"))
        monkeypatch.setenv("MPIDL_SITE", str(folder / "site"))

    return go


@pytest.fixture
def elsewhere(own_site: Site, tmp_path: Path, mpidl: Run, go: Any) -> Path:
    """A machine with the site's public folder only, and the keys of eve, certified there."""
    here, answer = tmp_path / "eve.d", tmp_path / "answer"
    here.mkdir(mode=0o700)
    go(here)
    mpidl("keys", "request", "--person", "eve", "--submit", "--out", tmp_path / "eve.request")
    go(own_site.folder)
    mpidl("keys", "issue", "--request", tmp_path / "eve.request", "--out", answer)
    assert all(path.name.endswith("certificate.pem") for path in answer.iterdir())
    go(here)
    assert "no site's root" in mpidl("keys", "install", "eve", answer, status=1)["error"]
    (here / "site").mkdir()
    for name in ("root.pem", "revoked.crl"):
        (here / "site" / name).write_bytes((own_site.folder / "site" / name).read_bytes())
    mpidl("keys", "install", "eve", answer)
    return here


def test_a_request_goes_to_an_authority_and_back(
    own_site: Site, elsewhere: Path, mpidl: Run
) -> None:
    assert mpidl("keys", "show", "eve")["identities"][0]["problem"] == ""
    mpidl("keys", "issue", "--job", "run-1", "--by", "eve")
    error = mpidl("keys", "install", "eve", own_site.keys("bob"), status=1)["error"]
    assert "certificates of other keys" in error
    assert mpidl("keys", "show", "eve")["identities"][0]["problem"] == ""


def test_so_do_new_keys_while_the_old_ones_are_in_use(
    own_site: Site, elsewhere: Path, tmp_path: Path, mpidl: Run, go: Any
) -> None:
    eve = elsewhere / "keys" / "eve"
    old, asked = load_identity(eve), tmp_path / "again.request"
    for _ in range(2):  # the first request is lost
        mpidl("keys", "rotate", "eve", "--out", asked)
    assert load_identity(eve).chain == old.chain
    go(own_site.folder)
    again = ("keys", "issue", "--request", asked, "--out", tmp_path / "b")
    assert "a person has the name 'eve'" in mpidl(*again, status=1)["error"]
    mpidl(*again, "--replace")
    go(elsewhere)
    wrong = mpidl("keys", "install", "eve", tmp_path / "answer", status=1)
    assert "certificates of other keys" in wrong["error"]
    mpidl("keys", "install", "eve", tmp_path / "b")
    new = load_identity(eve)
    assert new.key.public_key() != old.key.public_key()
    (kept,) = retired_sealing_keys(eve).values()
    assert old.sealing_key is not None and kept.public_key() == old.sealing_key.public_key()
    assert sorted(path.name for path in eve.parent.iterdir()) == [".seen.json", "eve"]


def test_what_ends_soon_is_said(own_site: Site, mpidl: Run) -> None:
    own_site.job("run-8")
    assert "job:run-8 of ada ends in 23:" in mpidl("keys", "show", "run-8")["error"]
    assert "ends in" not in mpidl("keys", "show", "ada")["error"]
    own_site.authority.revoke(set(), days=3)
    assert "list of revoked certificates ends in 2 days" in mpidl("keys", "show", "ada")["error"]


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_the_umask_does_not_matter(empty: Path, tmp_path: Path, mpidl: Run, umask: int) -> None:
    before = os.umask(umask)
    try:
        mpidl("keys", "init", "lab.example.org")
        mpidl("keys", "issue", "--person", "ada", "--submit")
        mpidl("keys", "issue", "--job", "x", "--by", "ada", "--out", tmp_path / "a" / "b")
        assert mpidl("keys", "show", "ada")["identities"][0]["problem"] == ""
    finally:
        os.umask(before)
    for path in [*(empty / "keys").rglob("*"), *(empty / "site").rglob("*"), tmp_path / "a"]:
        assert path.stat().st_mode & 0o022 == 0, path


def test_rotation(own_site: Site, mpidl: Run) -> None:
    before = own_site.identity("portal").chain[0].serial_number
    assert mpidl("keys", "rotate", "portal")["revoked"] is None
    portal = own_site.identity("portal")
    assert portal.chain[0].serial_number != before
    trust = own_site.trust()
    trust.verify(portal.chain, "tokens")  # it may what it might
    assert b"portal.example.org" in portal.chain[0].tbs_certificate_bytes
    assert mpidl("keys", "rotate", "ada", "--revoke")["revoked"] == 2
    assert "was revoked" in mpidl("keys", "show", "run-7", status=1)["error"]
    assert mpidl("keys", "show", "ada")["identities"][0]["problem"] == ""
    error = mpidl("keys", "rotate", "run-7", status=1)["error"]
    assert "a job are not rotated" in error


def test_tokens(own_site: Site, tmp_path: Path, mpidl: Run) -> None:
    file = tmp_path / "token"
    said = ("keys", "token", "lab", "--audience", "serve", "--role", "client", "--out", file)
    result = mpidl(*said, "--by", "portal")
    text = file.read_text().strip()
    assert text not in json.dumps(result) and file.stat().st_mode & 0o777 == 0o600
    subject = TokenVerifier(own_site.trust(), "serve").verify(text)
    assert (subject.name, subject.roles) == ("lab", ("client",))
    assert "is not for tokens" in mpidl(*said, "--by", "bob", status=1)["error"]
    assert (
        "cannot be valid" in mpidl(*said, "--by", "portal", "--lifetime", "2d", status=1)["error"]
    )
    mpidl("keys", "revoke", "--serial", subject.serial)
    with pytest.raises(Exception, match="was revoked"):
        TokenVerifier(own_site.trust(), "serve").verify(text)


WRONG = [
    (("init", "cluster.example.org"), "a root already"),
    (("init", "No"), "no such name"),
    (("issue", "--person", "ada"), "keys already"),
    (("issue", "--person", "eve", "--no-passphrase"), "always encrypted"),
    (("issue", "--person", "eve", "--by", "ada"), "of jobs only"),
    (("issue", "--person", "eve", "--lifetime", "9999d"), "no lifetime of a person"),
    (("issue", "--person", "../eve"), "no such name"),
    (("issue", "--job", "x"), "needs a submitter"),
    (("issue", "--job", "x", "--by", "bob"), "no key to submit"),
    (("issue", "--job", "x", "--by", "../bob"), "no keys of '../bob'"),
    (("issue", "--job", "x", "--by", "ada", "--host", "a"), "a job has no hosts"),
    (("issue", "--job", "../x", "--by", "ada"), "no such name"),
    (("issue", "--request", "nothing", "--out", "x"), "does not exist"),
    (("issue", "--request", "nothing"), "where should its certificates go"),
    (("request", "--person", "ada", "--out", "x"), "keys already"),
    (("request", "--person", "Eve", "--out", "x"), "no such name"),
    (("install", "ada", "nothing"), "does not exist"),
    (("revoke", "eve"), "no certificate was issued to 'eve'"),
    (("revoke", "../ada"), "no certificate was issued"),
    (("revoke", "--serial", "xyz"), "no number of a certificate"),
    (("revoke", "--list-days", "1000"), "cannot hold for"),
    (("rotate", "eve"), "no keys of 'eve'"),
    (("rotate", "ada", "--revoke", "--out", "x"), "revoked where the authority is"),
    (("show", "eve"), "no keys of 'eve'"),
]


@pytest.mark.parametrize(("words", "text"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_commands_have_a_remedy(
    site: Site, tmp_path: Path, mpidl: Run, monkeypatch: pytest.MonkeyPatch, words: Any, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    site.trust()  # remembers the number of the list
    before = sorted(site.folder.rglob("*"))
    error = mpidl("keys", *words, status=1)["error"]
    assert text in error and "what to do:" in error and "Traceback" not in error
    assert sorted(site.folder.rglob("*")) == before


@pytest.mark.parametrize(("text", "value"), [("30m", 1800), ("12h", 43200), ("90d", 7776000)])
def test_times_have_units(text: str, value: int) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "d", "12", "1w", "-1d", "1.5h", "９d", "9" * 30 + "d"])
def test_other_times_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["keys", "rotate", "ada", f"--lifetime={text}"])
    assert "is no time" in capsys.readouterr().err


POLICY = """version = 1
site = "cluster.example.org"
[[grants]]
role = "researcher"
subjects = ["person:ada", "job:*"]
submitters = []
data = ["/project/ct/**"]
"""


def test_policies_are_explained_and_signed(own_site: Site, tmp_path: Path, mpidl: Run) -> None:
    path = own_site.folder / "site" / "policy.toml"
    path.write_text(POLICY)
    path.chmod(0o644)
    asked = ("policy", "check", "person:ada", "read", "/project/ct/a")
    assert "is not signed" in mpidl(*asked, status=1)["error"]
    assert mpidl(*asked, "--draft", path)["allowed"]
    mpidl("policy", "sign", path)
    assert mpidl(*asked)["reason"] == "grant 1 (role researcher)"
    denied = mpidl("policy", "check", "person:bob", "train", status=DENIED)
    assert denied["reason"] == "no grant has that subject"
    assert mpidl("policy", "check", "job:run-7", "train", "--submitter", "ada")["allowed"]
    assert (
        "no name of a data set"
        in mpidl("policy", "check", "person:ada", "read", "/project/ct/../x", status=1)["error"]
    )
    for words in (("ada", "train"), ("person:ada", "read"), ("person:ada", "train", "x")):
        assert "what to do:" in mpidl("policy", "check", *words, status=1)["error"]
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").mkdir()
    asked = ("policy", "check", "person:ada", "read", tmp_path / "link")
    assert mpidl(*asked, status=DENIED)["object"] == str(tmp_path / "secret")


@pytest.mark.parametrize("words", [("keys", "show"), ("policy", "check", "person:ada", "train")])
def test_they_are_for_one_process(
    site: Site, mpidl: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert "is for one process, but 2 were started" in mpidl(*words, status=1)["error"]


def test_without_the_library_it_says_what_to_install(own_site: Site) -> None:
    """And a draft can be checked without it; nothing else of mpidl loads it."""
    path = own_site.folder / "draft.toml"
    path.write_text(POLICY)
    text = """
import sys
sys.modules["cryptography"] = None
from mpidl.cli.main import main
print(main(["keys", "show"]), main(["policy", "check", "person:ada", "train"]))
sys.exit(main(["policy", "check", "person:ada", "train", "--draft", sys.argv[1]]))
"""
    command = [sys.executable, "-c", text, str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["1 1", "person:ada may train: grant 1 (role researcher)"]
    assert found.stderr.count("pip install 'mpidl[security]'") == 2


def test_people_read_the_same(own_site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "show"]) == 0
    out = capsys.readouterr().out
    assert "site cluster.example.org: root until" in out and "person:ada: valid until" in out
    path = own_site.folder / "draft.toml"
    path.write_text(POLICY)
    words = ["person:ada", "train", "--draft", str(path), "--at", "2026-01-01T00:00+00:00"]
    assert main(["policy", "check", *words]) == 0
    assert "person:ada may train: grant 1 (role researcher)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["policy", "check", *words[:-1], "2026-01-01T00:00"])
    assert "has no time zone" in capsys.readouterr().err
