"""Who may do what: one TOML file of roles and grants, signed by the site; what it does not allow is
refused.

    version = 3                         # grows with each change
    site = "cluster.example.org"

    [roles.annotator]                   # beside the usual ones, see ROLES
    rights = ["read /project/ct/**", "infer segment-*"]

    [[grants]]
    role = "researcher"
    subjects = ["person:ada", "job:*"]  # kind:name
    submitters = ["ada"]                # of jobs
    data = ["/project/ct/**"]           # narrows the role's own
    days = ["mon", "tue"]               # in UTC
    hours = "08:00-18:00"

Subjects are those that `Trust.verify` and `TokenVerifier.verify` return. A token has a role only if
it is limited to that role and a grant gives that role to it.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, get_args

import msgspec

from mpidl.errors import ConfigError, SecurityError, at_place, nearest
from mpidl.security.objects import check_object, check_pattern, matches
from mpidl.security.subject import Subject

Right = Literal["train", "resume", "read", "export", "infer", "load", "metrics", "audit", "keys"]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

RIGHTS: tuple[Right, ...] = get_args(Right)
DAYS: tuple[Day, ...] = get_args(Day)
OBJECTS: dict[str, Literal["data", "models"]] = {
    "read": "data",
    "infer": "models",
    "load": "models",
}
SUBJECTS = ("person", "service", "node", "job", "token")
# What roles may do where the file does not define them; a grant narrows data and models
ROLES: dict[str, tuple[str, ...]] = {
    "admin": tuple(f"{right} **" if right in OBJECTS else right for right in RIGHTS),
    "operator": ("load **", "infer **", "metrics", "audit"),
    "researcher": ("train", "resume", "read **", "export", "infer **", "metrics"),
    "member": ("read **", "infer **", "metrics"),
    "client": ("infer **",),
}
MOST_BYTES = 256 << 10
DOCUMENTS = "see docs/security.md"

Word = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?\Z")]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Subjects = Annotated[
    str,
    msgspec.Meta(pattern=rf"\A(?:{'|'.join(SUBJECTS)}):[a-z0-9*](?:[a-z0-9._*-]{{0,63}})\Z"),
]
Hours = Annotated[
    str, msgspec.Meta(pattern=r"\A(?:[01]\d|2[0-3]):[0-5]\d-(?:[01]\d|2[0-3]):[0-5]\d\Z")
]
Few = msgspec.Meta(max_length=1024)
Some = msgspec.Meta(min_length=1, max_length=1024)


class Role(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A role.

    Attributes:
        rights: Each a right and, for those with objects, a pattern: "train", "read /project/**".
    """

    rights: Annotated[tuple[Text, ...], Some]


class Grant(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Gives a role to subjects, under conditions that must all hold.

    Attributes:
        role: The role.
        subjects: Of whom: "kind:name", `*` for any letters of a name.
        data: Patterns of data sets; empty: those of the role.
        models: Patterns of models; empty: those of the role.
        sites: Of which subjects may be; empty: the policy's.
        submitters: Of jobs: who submitted them (`*` for any letters); empty: anybody.
        issuers: Of tokens: who signed them, as "service:portal"; empty: anybody who may.
        since: From when on, with time zone.
        until: Until when, with time zone.
        days: Of the week, in UTC; empty: all.
        hours: "08:00-18:00", in UTC, the end excluded; over midnight where the end is earlier.
    """

    role: Word
    subjects: Annotated[tuple[Subjects, ...], Some]
    data: Annotated[tuple[Text, ...], Few] = ()
    models: Annotated[tuple[Text, ...], Few] = ()
    sites: Annotated[tuple[Word, ...], Few] = ()
    submitters: Annotated[tuple[Text, ...], Few] = ()
    issuers: Annotated[tuple[Text, ...], Few] = ()
    since: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    until: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    days: Annotated[tuple[Day, ...], Few] = ()
    hours: Hours | None = None


class Rules(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The file.

    Attributes:
        version: Grows with each change; an older one is refused where a newer one was seen.
        site: For which it is.
        roles: Roles of one's own; one of the usual names replaces that role.
        grants: Who has which role.
    """

    version: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    site: Word
    roles: Annotated[dict[Word, Role], Few] = {}
    grants: Annotated[tuple[Grant, ...], msgspec.Meta(max_length=4096)] = ()


@dataclass(frozen=True)
class Decision:
    """What a policy says.

    Attributes:
        allowed: Whether it is allowed.
        subject: Who asked.
        right: For what.
        object: Of what; empty for rights without objects.
        reason: The grant that allows it, or what lacks of each that comes close.
    """

    allowed: bool
    subject: Subject
    right: Right
    object: str
    reason: str

    def __str__(self) -> str:
        """For people and records."""
        verdict = "may" if self.allowed else "may not"
        what = f"{self.right} {self.object}".rstrip()
        return f"{self.subject} {verdict} {what}: {self.reason}"


@dataclass(frozen=True)
class Policy:
    """A policy that was parsed and checked.

    Attributes:
        rules: Its file.
        roles: All roles: name -> right -> patterns of objects ("" for rights without).
    """

    rules: Rules
    roles: dict[str, dict[Right, tuple[str, ...]]]

    def check(
        self, subject: Subject, right: str, object: str = "", at: datetime | None = None
    ) -> Decision:
        """Whether a subject may do something, and why.

        Args:
            subject: As `Trust.verify` or `TokenVerifier.verify` returned it.
            right: One of RIGHTS.
            object: The data set or model, for rights that have one.
            at: When, with time zone (default: now).

        Raises:
            ConfigError: There is no such right, or it lacks an object, or has one too many.
            SecurityError: The object is no name.
        """
        known = check_right(right, bool(object))
        if object:
            check_object(object)
        near = []
        for number, grant in enumerate(self.rules.grants, 1):
            lacks = self._lacks(grant, subject, known, object, at or datetime.now(UTC))
            rule = f"grant {number} (role {grant.role})"
            if lacks is None:
                return Decision(True, subject, known, object, rule)
            near += [f"{rule}: {lacks}"] if lacks else []
        reason = "; ".join(near[:MOST_NEAR]) or "no grant has that subject"
        return Decision(False, subject, known, object, reason)

    def require(
        self, subject: Subject, right: str, object: str = "", at: datetime | None = None
    ) -> Decision:
        """As `check`, but what is not allowed is an error.

        Raises:
            SecurityError: It is not allowed.
        """
        decision = self.check(subject, right, object, at)
        if not decision.allowed:
            raise SecurityError(
                str(decision),
                where=f"policy, version {self.rules.version}",
                remedy="ask the site's administrator to grant it ('mpidl policy check' explains)",
            )
        return decision

    def _lacks(
        self, grant: Grant, subject: Subject, right: Right, object: str, at: datetime
    ) -> str | None:
        """None where a grant allows it; else why not, empty where it is of other subjects."""
        if not any(is_subject(pattern, subject) for pattern in grant.subjects):
            return ""
        found = self.roles[grant.role].get(right)
        if found is None:
            return f"the role has no right {right!r}"
        narrowed = getattr(grant, OBJECTS[right]) if object else ()
        for patterns in (found, narrowed or found):
            if object and not any(matches(pattern, object) for pattern in patterns):
                return f"{object} is not among {', '.join(patterns[:MOST_NEAR])}"
        return _unmet(grant, subject, self.rules.site, at)


MOST_NEAR = 8  # grants or patterns that an explanation names


def check_right(right: str, has_object: bool) -> Right:
    """A right by name.

    Raises:
        ConfigError: There is none, or it lacks an object, or has one too many.
    """
    known = next((each for each in RIGHTS if each == right), None)
    if known is None:
        raise ConfigError(f"there is no right {right[:80]!r}", remedy=nearest(right, RIGHTS))
    if has_object != (known in OBJECTS):
        what = OBJECTS.get(known, "data")
        lacks = f"needs the name of one of the {what}" if known in OBJECTS else "has no object"
        raise ConfigError(f"the right {known!r} {lacks}", remedy=DOCUMENTS)
    return known


def is_subject(pattern: str, subject: Subject) -> bool:
    """Whether a checked pattern "kind:name" is of a subject."""
    kind, _, name = pattern.partition(":")
    return kind == subject.kind and fnmatch.fnmatchcase(subject.name, name)


def _unmet(grant: Grant, subject: Subject, site: str, at: datetime) -> str | None:
    """The first condition of a grant that does not hold."""
    when = at.astimezone(UTC)
    if subject.site not in (grant.sites or (site,)):
        return f"the subject is of the site {subject.site}"
    if subject.kind == "token" and grant.role not in subject.roles:
        return "the token is not for that role"
    if not _listed(subject.submitter, grant.submitters):
        return f"it is not submitted by {' or '.join(grant.submitters)}"
    if not _listed(subject.issuer, grant.issuers):
        return f"it is not signed by {' or '.join(grant.issuers)}"
    if grant.since is not None and when < grant.since:
        return f"it begins at {grant.since}"
    if grant.until is not None and when >= grant.until:
        return f"it ended at {grant.until}"
    if grant.days and DAYS[when.weekday()] not in grant.days:
        return f"it holds on {', '.join(grant.days)}"
    if grant.hours and not _within(grant.hours, f"{when:%H:%M}"):
        return f"it holds from {grant.hours} UTC"
    return None


def _listed(name: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(name and fnmatch.fnmatchcase(name, each) for each in patterns)


def _within(hours: str, now: str) -> bool:
    start, _, end = hours.partition("-")
    return start <= now < end if start <= end else now >= start or now < end


def parse_policy(content: bytes, where: str) -> Policy:
    """A policy from its file.

    Raises:
        ConfigError: It is malformed, or names what does not exist.
    """
    try:
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        rules = msgspec.convert(tomllib.loads(content.decode()), Rules)
    except msgspec.ValidationError as error:
        raise ConfigError(
            ": ".join(reversed(at_place(error))), where=where, remedy=DOCUMENTS
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is no policy: {error}", where=where, remedy=DOCUMENTS) from error
    texts = {name: role.rights for name, role in rules.roles.items()}
    roles = {
        name: _rights(texts, f"{where}, roles.{name}") for name, texts in (ROLES | texts).items()
    }
    for number, grant in enumerate(rules.grants, 1):
        _check_grant(grant, roles, f"{where}, grants, number {number}")
    return Policy(rules, roles)


def _rights(texts: tuple[str, ...], where: str) -> dict[Right, tuple[str, ...]]:
    """Rights and the patterns of their objects, from "right pattern"."""
    found: dict[Right, tuple[str, ...]] = {}
    for text in texts:
        word, _, pattern = text.partition(" ")
        try:
            right = check_right(word, bool(pattern))
        except ConfigError as error:
            raise error.replace(where=where) from error
        if pattern:
            check_pattern(pattern, where)
        found[right] = (*found.get(right, ()), pattern)
    return found


def _check_grant(grant: Grant, roles: dict[str, Any], where: str) -> None:
    if grant.role not in roles:
        raise ConfigError(
            f"there is no role {grant.role!r}", where=where, remedy=nearest(grant.role, roles)
        )
    for pattern in (*grant.data, *grant.models):
        check_pattern(pattern, where)
    for pattern in (*grant.submitters, *grant.issuers):
        if not _NAMES.fullmatch(pattern):
            raise ConfigError(
                f"{pattern[:80]!r} names nobody",
                where=where,
                remedy="write names in small letters, '*' for any letters",
            )
    if grant.since is not None and grant.until is not None and grant.since >= grant.until:
        raise ConfigError("ends before it begins", where=where, remedy="correct since or until")


_NAMES = re.compile(r"(?:(?:person|service):)?[a-z0-9*][a-z0-9._*-]{0,63}")
