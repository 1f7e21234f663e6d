"""What the site's policy does not grant, commands do not do."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpidl.errors import ConfigError, MpidlError, SecurityError
from mpidl.security.section import SecurityConfig
from mpidl.security.signed_policy import sign_policy
from mpidl.train.admission import Gate
from tests.security.site import Site, write

POLICY = """
version = {version}
site = "cluster.example.org"
[[grants]]
role = "researcher"
subjects = ["job:*"]
submitters = ["ada"]
data = ["{data}/**"]
"""


def set_policy(site: Site, data: Path, version: int = 1) -> None:
    path = site.folder / "site" / "policy.toml"
    write(path, POLICY.format(version=version, data=data.resolve()).encode())
    sign_policy(path, site.authority)


def gate(site: Site, who: str = "run-7") -> Gate:
    identity = str(site.keys(who))
    return Gate.of(SecurityConfig(enforce_policy=True, identity=identity))


def test_a_job_may_do_what_is_granted(own_site: Site, tmp_path: Path) -> None:
    for name in ("project/ct", "other"):
        (tmp_path / name).mkdir(parents=True)
    set_policy(own_site, tmp_path / "project")
    made = gate(own_site)
    for right in ("train", "resume", "export"):
        made.require(right)
    made.require_data(tmp_path / "project" / "ct")
    (tmp_path / "project" / "link").symlink_to(tmp_path / "other")
    for folder in (tmp_path / "other", tmp_path / "project" / "link", tmp_path / "project" / ".."):
        with pytest.raises(SecurityError, match="may not read"):
            made.require_data(folder)
    with pytest.raises(SecurityError, match="may not audit"):
        made.require("audit")
    with pytest.raises(MpidlError):
        made.require_data(tmp_path / "nothing")
    with pytest.raises(ConfigError):
        made.require("everything")


def test_others_may_not(own_site: Site, tmp_path: Path) -> None:
    set_policy(own_site, tmp_path)
    with pytest.raises(SecurityError, match="may not train"):
        gate(own_site, "bob").require("train")
    own_site.issue("person", "carl", submit=True)
    own_site.job("run-8", by="carl")
    with pytest.raises(SecurityError, match="submitted by ada"):
        gate(own_site, "run-8").require("train")
    with pytest.raises(MpidlError):
        gate(own_site, "nobody").require("train")
    serial = own_site.identity("run-7").chain[0].serial_number
    own_site.authority.revoke({serial})
    with pytest.raises(SecurityError, match="revoked"):
        gate(own_site).require("train")


def test_without_the_setting_nobody_is_asked(tmp_path: Path) -> None:
    made = Gate.of(SecurityConfig())
    made.require("train")
    made.require_data(tmp_path / "nothing")


def test_a_run_cannot_leave_out_what_the_site_enforces() -> None:
    site = SecurityConfig(enforce_policy=True)
    assert SecurityConfig().within(site).enforce_policy
