"""The section that chooses the channel, and that a run without one loads nothing of it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from mpidl.config import build_config
from mpidl.errors import ConfigError, SecurityError
from mpidl.security.credentials import load_credentials
from mpidl.security.encrypted_ranks import EncryptedRanks
from mpidl.security.session import Outbox, Pool
from tests.security.site import Site

TREE: dict[str, Any] = {"data": {"train": "t", "test": "t"}}


def test_the_section_is_read_and_written() -> None:
    short = build_config(TREE | {"security": {"channel": "tls-like"}}, "run.toml")
    assert short.security.channel.options == EncryptedRanks.Options()
    whole = {"security": {"channel": {"name": "tls-like", "scope": "all", "certificate": "j"}}}
    config = build_config(TREE | whole, "run.toml")
    assert config.security.channel.options == EncryptedRanks.Options(scope="all", certificate="j")
    assert build_config(config.to_tree(), "again") == config
    assert build_config(TREE, "run.toml").security.channel.name == "off"


@pytest.mark.parametrize(
    "channel",
    [
        {"name": "tls"},
        {"name": "tls-like", "scope": "none"},
        {"name": "tls-like", "rekey_records": 1},
    ],
)
def test_impossible_settings_are_refused(channel: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"security\.channel"):
        build_config(TREE | {"security": {"channel": channel}}, "run.toml")


def test_the_environment_names_a_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIDL_CHANNEL", "all")
    assert EncryptedRanks.from_environment().options.scope == "all"
    monkeypatch.setenv("MPIDL_CHANNEL", "of")
    with pytest.raises(ConfigError, match="MPIDL_CHANNEL"):
        EncryptedRanks.from_environment()


def test_a_run_without_a_channel_loads_nothing() -> None:
    code = (
        "import sys, mpidl.train.trainer, mpidl.cli.main, mpidl.distributed; "
        "print([name for name in sys.modules if name.startswith('cryptography') or name in "
        "('mpidl.security.encrypted_ranks', 'mpidl.security.aead', 'mpidl._kernels.seal')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_certificate_of_a_job_and_no_other(
    own_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = own_site
    with pytest.raises(SecurityError, match="none is named"):
        load_credentials()
    site.job("c1")
    found = load_credentials("c1")
    assert found.job.endswith("ada/c1") and found.verify(found.chain) == found.job
    monkeypatch.setenv("MPIDL_JOB_CERTIFICATE", str(site.keys("c1")))
    assert load_credentials().job == found.job
    with pytest.raises(SecurityError):
        load_credentials("ada")  # a person is no rank
    (site.keys("c1") / "key.pem").chmod(0o640)
    with pytest.raises(SecurityError):
        load_credentials("c1")


def test_memory_of_messages_is_used_again_when_they_have_left() -> None:
    class Request:
        def __init__(self, left: bool) -> None:
            self.left, self.waited = left, False

        def Wait(self) -> None:
            self.waited = True

        def Test(self) -> bool:
            return self.left

    pool = Pool()
    first = pool.take(5000)
    assert first.size == 5000
    where = first.ctypes.data
    pool.give(first)
    again = pool.take(6000)
    assert again.ctypes.data == where and pool.take(6000).ctypes.data != where
    outbox, requests = Outbox(pool), [Request(True) for _ in range(20)]
    for request in requests:
        outbox.add(request, pool.take(100))
    assert [request.waited for request in requests] == [True] * 4 + [False] * 16
    outbox.flush()
    assert not outbox._sent
