"""The policy: who may do what, that nothing else is allowed, and that its file is not believed."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.errors import ConfigError, DataError, SecurityError
from mpidl.security.objects import check_object, check_pattern, data_object, matches
from mpidl.security.policy import MOST_BYTES, OBJECTS, RIGHTS, ROLES, Policy, parse_policy
from mpidl.security.signed_policy import load_policy, sign_policy, signature_file
from mpidl.security.subject import Subject
from tests.security.site import Site, flips

SITE = "cluster.example.org"
HEAD = f'version = 1\nsite = "{SITE}"\n'
WEDNESDAY = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
ADA = Subject(SITE, "person", "ada")
JOB = Subject(SITE, "job", "run-7", submitter="ada")
LAB = Subject(SITE, "token", "lab", issuer="service:portal", roles=("client", "researcher"))


def policy(text: str) -> Policy:
    return parse_policy((HEAD + text).encode(), "policy.toml")


def grant(role: str = "researcher", subjects: str = "person:ada", more: str = "") -> str:
    return f'[[grants]]\nrole = "{role}"\nsubjects = ["{subjects}"]\n{more}\n'


def allowed(text: str, subject: Subject = ADA, right: str = "train", *rest: Any) -> bool:
    name = rest[0] if rest else "" if right not in OBJECTS else "/data/x"
    return policy(text).check(subject, right, name, WEDNESDAY).allowed


@pytest.mark.parametrize("right", RIGHTS)
def test_nothing_is_allowed_that_is_not_granted(right: str) -> None:
    name = "x" if right in OBJECTS else ""
    for text in ("", grant(subjects="person:bob"), grant("client", "job:*")):
        decision = policy(text).check(ADA, right, name)
        assert not decision.allowed and decision.reason == "no grant has that subject"


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("right", RIGHTS)
def test_the_usual_roles(role: str, right: str) -> None:
    has = any(text.split(" ")[0] == right for text in ROLES[role])
    assert allowed(grant(role), ADA, right) == has
    assert role != "admin" or has
    assert right not in ("keys", "audit") or not has or role in ("admin", "operator")


def test_a_decision_is_explained() -> None:
    text = grant("client") + grant(more='data = ["/data/ct/**"]')
    rules = policy(text)
    assert str(rules.check(ADA, "read", "/data/ct/a")) == (
        "person:ada may read /data/ct/a: grant 2 (role researcher)"
    )
    lacks = rules.check(ADA, "read", "/data/mr/a")
    assert not lacks.allowed
    assert lacks.reason == (
        "grant 1 (role client): the role has no right 'read'; "
        "grant 2 (role researcher): /data/mr/a is not among /data/ct/**"
    )
    with pytest.raises(SecurityError, match="may not read /data/mr/a") as caught:
        rules.require(ADA, "read", "/data/mr/a")
    assert "version 1" in caught.value.where
    assert rules.require(ADA, "train").allowed


@pytest.mark.parametrize(
    ("subject", "pattern", "fits"),
    [
        (ADA, "person:ada", True),
        (ADA, "person:*", True),
        (ADA, "person:a*", True),
        (ADA, "person:ad", False),
        (ADA, "service:ada", False),
        (ADA, "job:*", False),
        (ADA, "token:*", False),
        (JOB, "person:ada", False),  # a job has the roles of jobs, not its submitter's
        (JOB, "job:run-*", True),
        (LAB, "token:lab", True),
        (LAB, "person:lab", False),
    ],
)
def test_subjects(subject: Subject, pattern: str, fits: bool) -> None:
    assert allowed(grant(subjects=pattern), subject) == fits


@pytest.mark.parametrize(
    ("subject", "condition", "holds"),
    [
        (JOB, 'submitters = ["ada"]', True),
        (JOB, 'submitters = ["bob"]', False),
        (JOB, 'submitters = ["a*"]', True),
        (ADA, 'submitters = ["ada"]', False),  # no job: nobody submitted it
        (ADA, 'submitters = ["*"]', False),
        (LAB, 'issuers = ["service:portal"]', True),
        (LAB, 'issuers = ["service:other"]', False),
        (ADA, 'issuers = ["*"]', False),
        (ADA, 'sites = ["other.org"]', False),
        (ADA, f'sites = ["other.org", "{SITE}"]', True),
        (Subject("other.org", "person", "ada"), "", False),
        (Subject("other.org", "person", "ada"), 'sites = ["other.org"]', True),
        (ADA, "since = 2026-11-25T12:00:00Z", True),
        (ADA, "since = 2026-11-25T12:00:01Z", False),
        (ADA, "since = 2026-11-25T13:00:00+01:00", True),
        (ADA, "until = 2026-11-25T12:00:00Z", False),
        (ADA, "until = 2026-11-25T12:00:01Z", True),
        (ADA, 'days = ["wed"]', True),
        (ADA, 'days = ["tue", "thu"]', False),
        (ADA, 'hours = "12:00-13:00"', True),
        (ADA, 'hours = "11:00-12:00"', False),
        (ADA, 'hours = "22:00-06:00"', False),
        (ADA, 'hours = "22:00-12:01"', True),
        (ADA, 'days = ["wed"]\nhours = "01:00-02:00"', False),
    ],
)
def test_conditions(subject: Subject, condition: str, holds: bool) -> None:
    assert allowed(grant(subjects=f"{subject.kind}:*", more=condition), subject) == holds


def test_a_token_is_limited_to_its_roles() -> None:
    text = grant("client", "token:*") + grant("operator", "token:*")
    assert allowed(text, LAB, "infer", "m")
    assert not allowed(text, LAB, "metrics")
    nothing = Subject(SITE, "token", "lab", issuer="service:portal", roles=("operator",))
    assert not allowed(grant("client", "token:*"), nothing, "infer", "m")
    assert not allowed("", LAB, "infer", "m"), "what a token says of itself is no grant"


def test_grants_narrow_roles_and_never_widen_them() -> None:
    own = '[roles.reader]\nrights = ["read /data/a/**", "infer m*"]\n'
    text = own + grant("reader", more='data = ["/data/**"]\nmodels = ["m1"]')
    assert allowed(text, ADA, "read", "/data/a/x")
    assert not allowed(text, ADA, "read", "/data/b/x")
    assert allowed(text, ADA, "infer", "m1") and not allowed(text, ADA, "infer", "m2")
    replaced = '[roles.client]\nrights = ["metrics"]\n' + grant("client")
    assert allowed(replaced, ADA, "metrics") and not allowed(replaced, ADA, "infer", "m")


BAD = {
    "an unknown role": (grant("rsearcher"), "researcher"),
    "an unknown right": ('[roles.x]\nrights = ["reed /a"]\n', "read"),
    "a right without its object": ('[roles.x]\nrights = ["read"]\n', "needs the name"),
    "an object too many": ('[roles.x]\nrights = ["train /a"]\n', "has no object"),
    "no rights": ("[roles.x]\nrights = []\n", "rights"),
    "a key twice": (grant(more='role = "admin"'), "no policy"),
    "a table twice": ('[roles.x]\nrights=["train"]\n[roles.x]\nrights=["keys"]\n', "no policy"),
    "an unknown key": (grant(more='object = ["x"]'), "object"),
    "an unknown table": ("[rules]\n", "rules"),
    "an unknown kind": (grant(subjects="user:ada"), "subjects"),
    "no kind": (grant(subjects="ada"), "subjects"),
    "all kinds": (grant(subjects="*:*"), "subjects"),
    "no subjects": ('[[grants]]\nrole = "client"\nsubjects = []\n', "subjects"),
    "subjects as a text": ('[[grants]]\nrole = "client"\nsubjects = "person:*"\n', "subjects"),
    "a path that goes up": (grant(more='data = ["/data/../**"]'), "no pattern"),
    "a double slash": (grant(more='data = ["/data//x"]'), "no pattern"),
    "a slash at the end": (grant(more='data = ["/data/"]'), "no pattern"),
    "a backslash": (grant(more="data = ['/data\\x']"), "no pattern"),
    "a question mark": (grant(more='data = ["/data/?"]'), "no pattern"),
    "a bracket": (grant(more='data = ["/data/[a-z]"]'), "no pattern"),
    "two stars in a name": (grant(more='data = ["/data/x**"]'), "no pattern"),
    "a control character": (grant(more='data = ["/data/\\u0000"]'), "no pattern"),
    "another spelling": (grant(more='data = ["/data/e\\u0301"]'), "no pattern"),
    "a time without a zone": (grant(more="since = 2026-01-01T00:00:00"), "since"),
    "a date": (grant(more="since = 2026-01-01"), "since"),
    "an end before the start": (
        grant(more="since = 2026-01-02T00:00:00Z\nuntil = 2026-01-01T00:00:00Z"),
        "ends before it begins",
    ),
    "an hour that is none": (grant(more='hours = "8:00-18:00"'), "hours"),
    "hour 24": (grant(more='hours = "08:00-24:00"'), "hours"),
    "a day that is none": (grant(more='days = ["Mon"]'), "days"),
    "a submitter that is none": (grant(more='submitters = ["A B"]'), "names nobody"),
    "a role's name that is none": ('[roles."A b"]\nrights = ["train"]\n', "roles"),
    "deep nesting": ("x = " + "[" * 5000 + "]" * 5000, "no policy"),
    "too large": ("#" * MOST_BYTES, "no policy"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_policies_are_refused_as_a_whole(case: str) -> None:
    text, word = BAD[case]
    with pytest.raises(ConfigError) as caught:
        policy(text)
    assert word in str(caught.value) and "policy.toml" in caught.value.where


@pytest.mark.parametrize("head", ["", "version = 0\nsite = 'a'", "version = 1", "version = 1.5"])
def test_a_policy_has_a_version_and_a_site(head: str) -> None:
    with pytest.raises(ConfigError):
        parse_policy(head.encode(), "policy.toml")


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_anything_else_is_refused_with_our_error(content: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_policy(content, "policy.toml")


@pytest.mark.parametrize(
    "name",
    ["/data/../etc", "..", ".", "a//b", "/a/", "a/./b", "a\\b", "a\0", "a\n", "*", "a?", " a", "/"],
)
def test_objects_have_one_spelling(name: str) -> None:
    with pytest.raises(SecurityError):
        policy(grant("admin")).check(ADA, "read", name)


@pytest.mark.parametrize("name", ["", "x" * 1025, "a/" * 64 + "a", "e\u0301", "a\u202eb", "[a]"])
def test_objects_are_short_and_plain(name: str) -> None:
    with pytest.raises(SecurityError):
        check_object(name)


@pytest.mark.parametrize(("right", "name"), [("read", ""), ("train", "x"), ("raed", "x"), ("", "")])
def test_rights_have_objects_or_none(right: str, name: str) -> None:
    with pytest.raises(ConfigError):
        policy("").check(ADA, right, name)


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        (
            "/data/**",
            ["/data", "/data/a", "/data/a/b"],
            ["/dat", "/database", "data/a", "/x/data/a"],
        ),
        ("/data/*", ["/data/a"], ["/data", "/data/a/b"]),
        ("/data/a*b", ["/data/ab", "/data/axxb"], ["/data/a/b", "/data/abc"]),
        ("/*/ct", ["/a/ct"], ["/ct", "/a/b/ct"]),
        ("/**/ct", ["/ct", "/a/b/ct"], ["/a/ct/b", "ct"]),
        ("*", ["a", "resnet50"], ["a/b", "/a"]),
        ("**", ["a", "/a", "a/b", "/a/b"], []),
        ("a.b", ["a.b"], ["axb", "A.B"]),
        ("/a/**/c/**", ["/a/c", "/a/b/c/d", "/a/c/c"], ["/a/b", "/a"]),
    ],
)
def test_patterns(pattern: str, inside: list[str], outside: list[str]) -> None:
    check_pattern(pattern, "x")
    assert [name for name in inside if not matches(pattern, name)] == []
    assert [name for name in outside if matches(pattern, name)] == []


WORDS = st.text("ab", min_size=1, max_size=3)
PARTS = st.lists(WORDS, min_size=1, max_size=4)


@given(
    parts=PARTS,
    pattern=st.lists(st.sampled_from(["*", "**", "a", "a*", "*b"]), min_size=1, max_size=4),
    absolute=st.booleans(),
)
def test_patterns_agree_with_a_plain_definition(
    parts: list[str], pattern: list[str], absolute: bool
) -> None:
    def fits(part: str, want: str) -> bool:
        head, star, tail = want.partition("*")
        long = len(part) >= len(head) + len(tail)
        return part.startswith(head) and part.endswith(tail) and long if star else part == want

    def reference(want: list[str], have: list[str]) -> bool:
        if not want:
            return not have
        if want[0] == "**":
            return any(reference(want[1:], have[count:]) for count in range(len(have) + 1))
        return bool(have) and fits(have[0], want[0]) and reference(want[1:], have[1:])

    start = "/" if absolute else ""
    found = matches(start + "/".join(pattern), start + "/".join(parts))
    assert found == reference(pattern, parts)


def test_matching_takes_no_time_however_the_pattern_is_made() -> None:
    check_pattern("/".join(["*a*a*a*a*a*a*a*a*b"] * 20), "x")
    assert not matches("/".join(["*a*a*a*a*a*a*a*a*b"] * 20), "/".join(["a" * 50] * 20))
    assert not matches("/".join(["**", "a"] * 20), "/".join(["a"] * 60 + ["b"]))


def test_a_data_set_is_where_its_links_lead(tmp_path: Path) -> None:
    real = tmp_path / "secret" / "ct"
    real.mkdir(parents=True)
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "ct").symlink_to(real)
    assert data_object(tmp_path / "open" / "ct") == str(real.resolve())
    assert data_object(tmp_path / "open" / ".." / "secret" / "ct") == str(real.resolve())
    with pytest.raises(DataError, match="does not exist"):
        data_object(tmp_path / "nothing")


def written(site: Site, text: str = "", version: int = 1) -> Path:
    path = site.folder / "site" / "policy.toml"
    path.write_text(HEAD.replace("version = 1", f"version = {version}") + text + grant())
    path.chmod(0o644)
    return path


def test_a_signed_policy_is_believed_and_a_changed_one_is_not(own_site: Site) -> None:
    path, trust = written(own_site), own_site.trust()
    with pytest.raises(SecurityError, match="is not signed"):
        load_policy(trust)
    sign_policy(path, own_site.authority)
    assert load_policy(trust).check(ADA, "train").allowed
    path.write_text(path.read_text().replace("ada", "eve"))
    with pytest.raises(SecurityError, match="changed after it was signed"):
        load_policy(trust)


def test_an_old_policy_put_back_is_refused(own_site: Site) -> None:
    path, trust = written(own_site), own_site.trust()
    sign_policy(path, own_site.authority)
    load_policy(trust)
    old = path.read_bytes(), signature_file(path).read_bytes()
    sign_policy(written(own_site, version=2), own_site.authority)
    load_policy(trust)
    path.write_bytes(old[0])
    signature_file(path).write_bytes(old[1])
    with pytest.raises(SecurityError, match="was rolled back"):
        load_policy(trust)


def test_a_policy_of_another_site_is_refused(own_site: Site) -> None:
    path = written(own_site)
    path.write_text(path.read_text().replace(SITE, "other.org"))
    with pytest.raises(SecurityError, match=r"is of the site other\.org"):
        sign_policy(path, own_site.authority)


@pytest.mark.parametrize("name", ["policy.toml", "policy.toml.sig"])
def test_no_bit_of_a_policy_can_change(own_site: Site, name: str) -> None:
    path, trust = written(own_site), own_site.trust()
    sign_policy(path, own_site.authority)
    load_policy(trust)
    file = path.with_name(name)
    for changed in flips(file.read_bytes()):
        file.write_bytes(changed)
        with pytest.raises((SecurityError, ConfigError)):
            load_policy(trust)


def test_a_policy_that_others_can_write_is_refused(own_site: Site) -> None:
    path = written(own_site)
    sign_policy(path, own_site.authority)
    path.chmod(0o666)
    with pytest.raises(SecurityError, match="others can change it"):
        load_policy(own_site.trust())


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=200))
def test_any_other_signature_is_refused(own_site: Site, content: bytes) -> None:
    path = written(own_site)
    signature_file(path).write_bytes(content)
    with pytest.raises(SecurityError, match="is malformed"):
        load_policy(own_site.trust())


def test_the_example_and_the_roles_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    (example,) = re.findall(r"^```text\n(version = .*?)^```$", page, re.DOTALL | re.MULTILINE)
    rules = parse_policy(example.encode(), "docs/security.md")
    assert rules.check(ADA, "read", "/project/ct/a").allowed
    assert not rules.check(ADA, "read", "/project/mr/a").allowed
    for role, rights in ROLES.items():
        assert f"| `{role}` | {', '.join(rights)} |" in page
    for right in RIGHTS:
        assert f"`{right}" in page
