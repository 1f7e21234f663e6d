"""Only signed data sets, checkpoints and weights are let in, and no run can weaken the site."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mpidl.cli.main import main
from mpidl.comm.context import init
from mpidl.data import Reader
from mpidl.data.manifest import NAME
from mpidl.errors import ConfigError, DataError, SecurityError
from mpidl.options import Place
from mpidl.security.section import SecurityConfig, site_security
from mpidl.security.signer import load_signer
from mpidl.security.signing import sign
from mpidl.train.admission import Gate, admit_data, check_opened, open_signed
from tests.jobs.conftest import blobs, write
from tests.security.authority import new_ec, write_key


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_key(tmp_path / "k.pem", new_ec())


@pytest.fixture
def strict(tmp_path: Path, key: Path) -> SecurityConfig:
    return SecurityConfig(require_signatures=True, trusted=(str(tmp_path / "k.pub"),))


@pytest.fixture
def data(tmp_path: Path, key: Path) -> Path:
    write(tmp_path / "data", blobs(30, 0), 3)
    sign(tmp_path / "data", load_signer(str(key)))
    return tmp_path / "data"


def refused(data: Path, strict: SecurityConfig, words: str) -> None:
    with pytest.raises((SecurityError, DataError), match=words):
        open_signed(data, init(), strict, driver="posix")


def test_signed_data_are_let_in(data: Path, strict: SecurityConfig) -> None:
    with open_signed(data, init(), strict, driver="posix") as reader:
        assert len(reader) == 30
        reader.read([(0, 11)])
        names = [shard.file for shard in reader.manifest.shards]
        assert reader.files_read == names[:2]


def test_changed_data_are_not(data: Path, strict: SecurityConfig) -> None:
    shard = sorted(data.glob("*.h5"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(data, strict, "is damaged: its SHA-256")
    # nor with a manifest that fits, nor with another signature file
    tree = json.loads((data / NAME).read_text())
    tree["shards"][1]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    (data / NAME).write_text(json.dumps(tree))
    refused(data, strict, "has changed since it was signed")
    sign(data, load_signer(str(write_key(data.parent / "eve.pem", new_ec()))))
    refused(data, strict, "with a key that is not trusted")
    (data / "model.sig").unlink()
    refused(data, strict, "is not signed")


def test_a_signature_that_does_not_cover_all(
    data: Path, key: Path, strict: SecurityConfig, tmp_path: Path
) -> None:
    shard = sorted(data.glob("*.h5"))[1]
    shard.rename(tmp_path / "aside")
    sign(data, load_signer(str(key)))
    (tmp_path / "aside").rename(shard)
    refused(data, strict, f"the signature does not cover {shard.name}")
    sign(data / NAME, load_signer(str(key)), data / "model.sig")
    refused(data, strict, f"holds no SHA-256 of {NAME}")


def test_replaced_between_verification_and_use(
    data: Path, strict: SecurityConfig, tmp_path: Path
) -> None:
    context = init()
    gate = Gate.of(strict)
    signed = admit_data(gate, [str(data)], context, verify=True)
    good = (data / NAME).read_text()
    (data / NAME).write_text(good.replace('"samples": 30', '"samples":  30'))
    with Reader(data) as reader, pytest.raises(SecurityError, match="was replaced meanwhile"):
        check_opened(reader, signed, context)
    (data / NAME).write_text(good)
    with Reader(data) as reader:
        check_opened(reader, signed, context)
    with pytest.raises(ConfigError, match=r"data\.verify is false"):
        admit_data(gate, [str(data)], context, verify=False)


def test_files_in_place_need_checksums(
    tmp_path: Path, data: Path, key: Path, strict: SecurityConfig
) -> None:
    files = [str(path) for path in sorted(data.glob("*.h5"))]
    for options, words in [([], "holds no SHA-256 of"), (["--checksum"], "")]:
        out = tmp_path / f"index{len(options)}"
        assert main(["index", *files, "--out", str(out), "--label", "label", *options]) == 0
        sign(out, load_signer(str(key)))
        if words:
            refused(out, strict, words)
        else:
            open_signed(out, init(), strict, driver="posix").close()
            content = bytearray(Path(files[0]).read_bytes())
            content[-1] ^= 1
            Path(files[0]).write_bytes(content)
            refused(out, strict, "SHA-256")


def test_what_a_run_cannot_weaken(strict: SecurityConfig) -> None:
    tree = {"audit": {"folder": "logs"}, "identity": "site", "sign_checkpoints": True}
    site = SecurityConfig.read({**strict.to_tree(), **tree}, Place(("security",)))
    own = SecurityConfig(trusted=("eve.pub",), identity="ada")
    found = own.within(site)
    assert found.require_signatures and found.trusted == strict.trusted
    assert found.audit.folder == "logs" and found.sign_checkpoints and found.identity == "ada"
    stricter = SecurityConfig(require_signatures=True, trusted=("a.pub",))
    assert stricter.within(SecurityConfig()) == stricter
    assert not SecurityConfig().is_on and stricter.is_on


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[security]\nrequire_signatures = true\n",
        "[security]\nrequire_signature = true\n",
        "[security]\n[other]\n",
        "security = 1\n",
        "[security\n",
        "\xff",
    ],
)
def test_settings_of_a_site_that_are_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s.toml").write_bytes(text.encode("latin-1"))
    monkeypatch.setenv("MPIDL_SECURITY", str(tmp_path / "s.toml"))
    with pytest.raises(ConfigError):
        site_security()
    monkeypatch.setenv("MPIDL_SECURITY", str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        site_security()


def test_weights_have_to_be_signed(tmp_path: Path, key: Path, strict: SecurityConfig) -> None:
    gate = Gate.of(strict)
    (tmp_path / "w.safetensors").write_bytes(b"1")
    with pytest.raises(SecurityError, match="is not signed"), gate.file(tmp_path / "w.safetensors"):
        raise AssertionError("used before it was verified")
    sign(tmp_path / "w.safetensors", load_signer(str(key)))
    with gate.file(tmp_path / "w.safetensors"):
        pass
    with Gate().file(tmp_path / "any"):
        pass


def test_without_the_section_nothing_is_loaded() -> None:
    code = (
        "import sys, mpidl.cli.main, mpidl.train.trainer, mpidl.inference.job, mpidl.serving.run\n"
        "import mpidl.cli.sign, mpidl.cli.verify, mpidl.cli.audit\n"
        "loaded = [m for m in sys.modules if m.startswith(('cryptography', 'mpidl.security.audit',"
        " 'mpidl.security.sign', 'mpidl.security.trusted'))]\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
