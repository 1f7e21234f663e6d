"""The list of revoked certificates: whom it stops, and that old, stale and forged ones do not."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.errors import ConfigError, SecurityError
from mpidl.security import revocation
from mpidl.security.certificates import SKEW, make_root
from mpidl.security.names import Name
from mpidl.security.revocation import Seen, load_list, make_list
from tests.security.site import Site, flips, now

DAY = timedelta(days=1)


def refused(site: Site, name: str, purpose: Any = "sign") -> str:
    with pytest.raises(SecurityError) as caught:
        site.trust().verify(site.identity(name).chain, purpose)
    return caught.value.what


def serials(site: Site, name: str) -> set[int]:
    return {each.serial_number for each in site.authority.issued(name)}


def test_revoked_certificates_are_refused(own_site: Site) -> None:
    assert own_site.authority.revoke(serials(own_site, "bob")) == 2
    assert refused(own_site, "bob") == "was revoked"
    own_site.trust().verify(own_site.identity("ada").chain, "sign")
    own_site.authority.revoke(set())  # a new list forgets nobody
    assert refused(own_site, "bob") == "was revoked"


def test_a_job_falls_with_its_submitter_or_alone(own_site: Site) -> None:
    own_site.job("run-8")
    own_site.authority.revoke({own_site.identity("run-8").chain[0].serial_number})
    assert refused(own_site, "run-8", "job-rank") == "was revoked"
    own_site.trust().verify(own_site.identity("run-7").chain, "job-rank")
    own_site.authority.revoke(serials(own_site, "ada"))
    assert refused(own_site, "run-7", "job-rank") == "was revoked"


def test_a_stale_list_is_refused(own_site: Site) -> None:
    own_site.authority.revoke(set(), days=2)
    trust, chain = own_site.trust(), own_site.identity("ada").chain
    trust.verify(chain, "sign", now=now() + 2 * DAY)
    with pytest.raises(SecurityError, match="is stale"):
        trust.verify(chain, "sign", now(), now=now() + 2 * DAY + SKEW + timedelta(minutes=1))


def test_what_was_signed_before_is_judged_by_the_list_of_today(own_site: Site) -> None:
    """A certificate that has expired was valid then; one that was revoked never was."""
    own_site.job("short", lifetime=timedelta(hours=1))
    trust, chain = own_site.trust(), own_site.identity("short").chain
    later = now() + timedelta(hours=5)
    with pytest.raises(SecurityError, match="expired"):
        trust.verify(chain, "sign", now=later)
    assert trust.verify(chain, "sign", now(), now=later).name == "short"
    own_site.authority.revoke({chain[0].serial_number})
    with pytest.raises(SecurityError, match="was revoked"):
        own_site.trust().verify(chain, "sign", now(), now=later)


def test_a_list_from_the_future_is_refused(own_site: Site) -> None:
    chain = own_site.identity("ada").chain
    trust = own_site.trust()
    trust.verify(chain, "sign", now=trust.revocations.made - SKEW)
    with pytest.raises(SecurityError, match="from the future"):
        trust.verify(chain, "sign", now(), now=now() - timedelta(hours=1))


def test_an_old_list_put_back_is_refused(own_site: Site) -> None:
    path = own_site.folder / "site" / "revoked.crl"
    old = path.read_bytes()
    own_site.trust()
    own_site.authority.revoke(serials(own_site, "bob"))
    own_site.trust()
    path.write_bytes(old)
    with pytest.raises(SecurityError, match="was rolled back: it has number 1, and 2"):
        own_site.trust()


@pytest.mark.parametrize("name", ["root.pem", "revoked.crl"])
def test_without_a_root_or_a_list_nobody_is_trusted(own_site: Site, name: str) -> None:
    (own_site.folder / "site" / name).unlink()
    with pytest.raises(Exception, match=r"no site's root|does not exist"):
        own_site.trust()


@pytest.mark.parametrize("name", ["root.pem", "revoked.crl"])
def test_files_that_others_can_write_are_refused(own_site: Site, name: str) -> None:
    path = own_site.folder / "site" / name
    path.chmod(0o664)
    with pytest.raises(SecurityError, match="others can change it"):
        own_site.trust()
    path.chmod(0o644)
    path.parent.chmod(0o777)
    with pytest.raises(SecurityError, match="others can replace it"):
        own_site.trust()


def test_no_bit_of_a_list_can_change(site: Site) -> None:
    content = (site.folder / "site" / "revoked.crl").read_bytes()
    load_list(content, site.authority.root, "file")
    for changed in flips(content):
        with pytest.raises(SecurityError, match="was changed"):
            load_list(changed, site.authority.root, "file")


def test_only_the_root_signs_lists(site: Site) -> None:
    key, root = Ed25519PrivateKey.generate(), site.authority.root
    forged = make_list(root, key, 9, {}, DAY)
    other = make_root(Name("other.org", "site"), key, DAY)
    for content in (forged, make_list(other, key, 9, {}, DAY)):
        with pytest.raises(SecurityError, match="no list of revoked certificates"):
            load_list(content, root, "file")


def test_a_list_of_part_of_what_was_revoked_is_refused(site: Site) -> None:
    """A "delta" list, or an entry that takes a certificate off the list: signed, but not ours."""
    root, key = site.authority.root, site.authority.key
    plain = x509.CertificateRevocationListBuilder().issuer_name(root.subject)
    plain = plain.last_update(now()).next_update(now() + DAY)
    number = plain.add_extension(x509.CRLNumber(5), False)
    identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    above = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    whole = number.add_extension(above, False)
    entry = x509.RevokedCertificateBuilder().serial_number(7).revocation_date(now())
    taken = entry.add_extension(x509.CRLReason(x509.ReasonFlags.remove_from_crl), False)

    def load(builder: x509.CertificateRevocationListBuilder) -> Any:
        return load_list(builder.sign(key, None).public_bytes(Encoding.PEM), root, "file")

    assert load(whole.add_revoked_certificate(entry.build())).serials == {7}
    for builder in (
        plain,
        number,
        whole.add_extension(x509.DeltaCRLIndicator(4), True),
        whole.add_revoked_certificate(taken.build()),
    ):
        with pytest.raises(SecurityError):
            load(builder)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=300))
def test_anything_else_is_refused_with_our_error(site: Site, content: bytes) -> None:
    wrapped = b"-----BEGIN X509 CRL-----\n" + content + b"\n-----END X509 CRL-----\n"
    for text in (content, wrapped):
        with pytest.raises(SecurityError):
            load_list(text, site.authority.root, "file")


@pytest.mark.parametrize("days", [0, -1, 400, float("nan")])
def test_lists_hold_for_a_sensible_time(own_site: Site, days: float) -> None:
    with pytest.raises(ConfigError):
        own_site.authority.revoke(set(), days)


def test_lists_that_are_signed_at_the_same_time_are_one_after_the_other(own_site: Site) -> None:
    def revoke(serial: int) -> int:
        return int(own_site.authority.revoke({serial}))

    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(revoke, range(100, 112)))
    assert sorted(numbers) == list(range(2, 14))
    assert set(range(100, 112)) <= own_site.trust().revocations.serials


def test_numbers_that_are_seen_at_the_same_time_are_not_lost(tmp_path: Path) -> None:
    def see(number: int) -> None:
        with suppress(SecurityError):  # a higher one may have come first
            Seen(tmp_path / "seen.json", "root").check("revoked", number, "file")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(see, range(1, 21)))
    with pytest.raises(SecurityError, match="20 was seen"):
        Seen(tmp_path / "seen.json", "root").check("revoked", 19, "file")


def test_the_record_of_an_authority_is_no_list_of_others(own_site: Site) -> None:
    path = own_site.folder / "keys" / ".authority" / "record.json"
    own_site.authority.revoke(serials(own_site, "bob"))
    for content in (
        b"",
        b"{",
        b'{"number": -1}',
        b'{"number": 1, "x": 1}',
        b'{"revoked": {"g": 1}}',
    ):
        path.write_bytes(content)
        with pytest.raises(SecurityError, match="restore it from a backup"):
            own_site.authority.revoke(set())


def test_numbers_that_were_seen_only_grow(tmp_path: Path) -> None:
    seen = Seen(tmp_path / "new" / "seen.json", "root")
    seen.check("revoked", 3, "file")
    seen.check("revoked", 3, "file")
    seen.check("policy", 1, "file")
    Seen(seen.file, "other").check("revoked", 1, "file")
    with pytest.raises(SecurityError, match="rolled back"):
        seen.check("revoked", 2, "file")
    assert seen.file.stat().st_mode & 0o777 == 0o600
    seen.file.write_bytes(b'{"revoked:root": "3"}')
    with pytest.raises(SecurityError, match="is damaged"):
        seen.check("revoked", 4, "file")


def test_a_number_that_cannot_be_kept_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(revocation, "write_private", fail)
    with pytest.raises(SecurityError, match="cannot be kept"):
        Seen(tmp_path / "seen.json", "root").check("revoked", 1, "file")


def test_times_are_of_the_zone_that_they_name(site: Site) -> None:
    revocations = site.trust().revocations
    assert revocations.made.tzinfo is not None
    assert revocations.made <= datetime.now(UTC) < revocations.until
