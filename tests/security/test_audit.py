"""The audit log: what is written is found again; what is changed is noticed, and where."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.errors import SecurityError
from mpidl.security.audit import chain
from mpidl.security.audit.folder import read_logs, trace
from mpidl.security.audit.log import AuditLog
from mpidl.security.audit.record import Record, decode, encode
from mpidl.security.signer import Signer, load_signer
from mpidl.security.trusted import Trusted
from tests.security.authority import EXAMPLES, Authority
from tests.security.site import Site

FLIPS = int(os.environ.get("MPIDL_TEST_FLIPS", "150"))
KEY = ed25519.Ed25519PrivateKey.generate()
SIGNER = Signer(KEY, name="ada")
TRUSTED = Trusted({SIGNER.sign(b"", "").hint: KEY.public_key()})


def write(folder: Path, name: str, count: int = 9, **options: Any) -> AuditLog:
    log = AuditLog(folder, folder, SIGNER, every=4, name=name)
    for step in range(count):
        log.add("checkpoint.saved", object=f"/runs/{step}", details={"step": step}, **options)
    return log


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "a").close()
    write(tmp_path, "b").close()
    return tmp_path


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `folder`, put back in order by each test that changes it."""
    made = tmp_path_factory.mktemp("audit")
    write(made, "a").close()
    return made


def problems(folder: Path, heads: Path | None = None) -> list[str]:
    return [str(one) for one in read_logs(folder, heads or folder, TRUSTED).findings]


def change(path: Path, edit: Any) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    edit(lines)
    path.write_bytes(b"".join(lines))


def test_written_and_read(folder: Path) -> None:
    logs = read_logs(folder, folder, TRUSTED)
    assert logs.findings == []
    assert [r.action for r in logs.scans["a"].records] == [
        "log.opened",
        *["checkpoint.saved"] * 9,
        "log.closed",
    ]
    assert [r.number for r in logs.scans["a"].records] == list(range(11))
    assert len(logs.records) == 22
    assert list(logs.signatories) == [f"key {SIGNER.sign(b'', '').hint[:16]}"]
    heads = chain.read_heads(folder / "a.heads.jsonl", "a", TRUSTED).every
    assert [head.count for head in heads] == [4, 8, 11]
    assert (folder / "a.jsonl").stat().st_mode & 0o777 == 0o600


def reseal(line: bytes, **changes: Any) -> bytes:
    """A forger's line: changed, with the digest that fits."""
    import msgspec

    return encode(msgspec.structs.replace(decode(line[:-1])[0], **changes))[0]


def rewrite(lines: list[bytes], start: int) -> None:
    """Chain all lines from `start` on anew, as a forger would."""
    for index in range(start, len(lines)):
        previous = decode(lines[index - 1][:-1])[1]
        lines[index] = reseal(lines[index], previous=previous, number=index)


def forge(lines: list[bytes]) -> None:
    lines[5] = reseal(lines[5], user="eve")
    rewrite(lines, 6)


def remove_and_rewrite(lines: list[bytes]) -> None:
    del lines[5]
    rewrite(lines, 5)


ATTACKS: dict[str, tuple[Any, str]] = {
    "altered": (
        lambda lines: lines.__setitem__(5, lines[5].replace(b"/runs/4", b"/runs/7")),
        "a, line 6: the line was altered",
    ),
    "altered and sealed": (
        lambda lines: lines.__setitem__(5, reseal(lines[5], user="eve")),
        "a, line 7: it does not follow from the line before, which was replaced",
    ),
    "altered and chained": (forge, "a, line 8: is not what was signed in head 2"),
    "removed": (
        lambda lines: lines.__delitem__(5),
        "a, line 6: record 6 stands in place of 5: lines before it were removed",
    ),
    "removed and chained": (remove_and_rewrite, "a, line 8: is not what was signed in head 2"),
    "reordered": (
        lambda lines: lines.__setitem__(slice(4, 6), [lines[5], lines[4]]),
        "a, line 5: record 5 stands in place of 4",
    ),
    "repeated": (
        lambda lines: lines.insert(5, lines[4]),
        "a, line 6: record 4 comes again, or out of order",
    ),
    "truncated": (
        lambda lines: lines.__delitem__(slice(7, None)),
        "a, line 7: 1 record(s) are missing after this line: the log was cut",
    ),
    "empty": (lambda lines: lines.clear(), "a: 4 record(s) are missing after this line"),
    "added": (
        lambda lines: lines.append(
            reseal(lines[-1], number=11, previous=decode(lines[-1][:-1])[1])
        ),
        "a, line 12: 1 record(s) from here on are not signed",
    ),
    "no json": (lambda lines: lines.__setitem__(3, b"{}\n"), "a, line 4: the line is no record"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_found_and_located(folder: Path, attack: str) -> None:
    edit, words = ATTACKS[attack]
    change(folder / "a.jsonl", edit)
    assert any(one.startswith(words) for one in problems(folder)), problems(folder)


def test_lines_of_another_job(folder: Path) -> None:
    other = (folder / "b.jsonl").read_bytes().splitlines(keepends=True)
    change(folder / "a.jsonl", lambda lines: lines.__setitem__(5, other[5]))
    assert problems(folder)[0] == "a, line 6: a line of another log, b, was put here"
    shutil.copy(folder / "b.jsonl", folder / "a.jsonl")
    assert problems(folder)[0] == "a, line 1: a line of another log, b, was put here"


def test_forged_heads(folder: Path) -> None:
    eve = Signer(ed25519.Ed25519PrivateKey.generate(), name="eve")
    path = folder / "a.heads.jsonl"
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    for forged, words in [
        ([lines[0], lines[2]], "a: head 2 does not follow from the one before"),
        ([lines[1], lines[0], lines[2]], "a: head 1 does not follow"),
        ((folder / "b.heads.jsonl").read_bytes().splitlines(True), "a: head 1 does not follow"),
        ([b"{}\n"], "a: head 1 is not to be trusted: is no signature bundle"),
        ([], "a: has no signed head"),
        (lines[:2], "a, line 9: 3 record(s) from here on are not signed"),
    ]:
        path.write_bytes(b"".join(forged))
        assert any(one.startswith(words) for one in problems(folder)), words
    path.unlink()
    forger = AuditLog(folder / "x", folder / "x", eve, every=4, name="a")
    forger.close()
    shutil.copy(folder / "x" / "a.jsonl", folder / "a.jsonl")
    shutil.copy(folder / "x" / "a.heads.jsonl", path)
    assert "a: head 1 is not to be trusted: is signed with a key that is not trusted" in problems(
        folder
    )


def test_rollback(tmp_path: Path) -> None:
    """Log and heads of an earlier moment: found by heads kept apart, and by later logs."""
    logs, heads, old = tmp_path / "logs", tmp_path / "heads", tmp_path / "old"
    log = AuditLog(logs, heads, SIGNER, every=2, name="a")
    log.add("train.started")
    shutil.copytree(logs, old)
    saved = (heads / "a.heads.jsonl").read_bytes()
    for _ in range(5):
        log.add("checkpoint.saved")
    log.close()
    AuditLog(logs, heads, SIGNER, every=2, name="b").close()
    assert problems(logs, heads) == []
    shutil.copy(old / "a.jsonl", logs / "a.jsonl")
    assert problems(logs, heads)[0].startswith("a, line 2: 2 record(s) are missing after this line")
    (heads / "a.heads.jsonl").write_bytes(saved)
    found = problems(logs, heads)
    assert "a, line 2: records are missing after this line: b has seen 8 record(s) of it" in found
    (logs / "a.jsonl").unlink()
    found = problems(logs, heads)
    assert "a: the log is missing, its heads are there" in found
    (heads / "a.heads.jsonl").unlink()
    assert problems(logs, heads) == ["a: the log is missing: b has seen 8 record(s) of it"]


@pytest.mark.parametrize("file", ["a.jsonl", "a.heads.jsonl"])
def test_every_flipped_bit_is_found(folder: Path, file: str) -> None:
    path, draw = folder / file, random.Random(1)
    good = path.read_bytes()
    for _ in range(FLIPS):
        at = draw.randrange(8 * len(good))
        bad = bytearray(good)
        bad[at // 8] ^= 1 << at % 8
        path.write_bytes(bad)
        assert problems(folder)
    path.write_bytes(good)
    assert problems(folder) == []


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_every_edit_is_found(data: st.DataObject, logs: Path) -> None:
    """Bytes removed, repeated, moved or appended, in the log or its heads, or in both."""
    files = [logs / "a.jsonl", logs / "a.heads.jsonl"]
    good = {path: path.read_bytes() for path in files}
    try:
        for path in data.draw(st.sampled_from([files[:1], files[1:], files])):
            content = good[path]
            ends = [i + 1 for i, byte in enumerate(content) if byte == 10] + [0]
            place = st.sampled_from(ends) | st.integers(0, len(content))
            start, stop = sorted((data.draw(place), data.draw(place)))
            piece, rest = content[start:stop], content[:start] + content[stop:]
            to = min(data.draw(place), len(rest))
            kept = data.draw(st.sampled_from(["removed", "moved", "repeated", "cut"]))
            path.write_bytes(
                {
                    "removed": rest,
                    "moved": rest[:to] + piece + rest[to:],
                    "repeated": content[:stop] + piece + content[stop:],
                    "cut": content[:start],
                }[kept]
            )
        changed = any(path.read_bytes() != good[path] for path in files)
        assert bool(problems(logs)) == changed
    finally:
        for path, content in good.items():
            path.write_bytes(content)


def test_a_killed_job_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path, "a", 5)
    os.close(log._file)
    os.close(log._heads)  # as the kernel does when it kills a process
    path = tmp_path / "a.jsonl"
    with open(path, "ab") as file:
        file.write(b'{"log":"a","number":6,"ti')
    with open(tmp_path / "a.heads.jsonl", "ab") as file:
        file.write(b'{"mediaT')
    found = read_logs(tmp_path, tmp_path, TRUSTED).findings
    assert all(one.unfinished for one in found)
    assert {str(one) for one in found} == {
        "a: head 2 is torn",
        "a, line 7: the last line is torn, 25 bytes of it are left out",
        "a, line 5: 2 record(s) from here on are not signed",
    }
    log = write(tmp_path, "a", 1)
    assert "25 bytes of a torn last line were left out" in capsys.readouterr().err
    log.close()
    logs = read_logs(tmp_path, tmp_path, TRUSTED)
    assert logs.findings == []
    actions = [record.action for record in logs.records]
    assert actions[6:] == ["log.opened", "log.recovered", "checkpoint.saved", "log.closed"]


def test_nothing_is_added_to_a_broken_log(folder: Path) -> None:
    change(folder / "a.jsonl", lambda lines: lines.__delitem__(3))
    with pytest.raises(SecurityError, match="line 4: record 4 stands in place of 3"):
        write(folder, "a")


def test_two_steps_of_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    first = AuditLog(tmp_path, tmp_path, SIGNER, 9)
    second = AuditLog(tmp_path, tmp_path, SIGNER, 9)
    assert (first.name, second.name) == ("slurm-17", "slurm-17-2")
    assert second.add("train.started") == "slurm-17-2#1"
    first.close()
    second.close()
    assert problems(tmp_path) == []
    assert {record.job for record in read_logs(tmp_path, tmp_path, TRUSTED).records} == {"17"}


def test_heads_of_an_expired_certificate(tmp_path: Path) -> None:
    authority = Authority()
    short = authority.issue("job", KEY.public_key(), days=0.5)  # it began a day ago
    AuditLog(tmp_path, tmp_path, Signer(KEY, (short,), "job"), 4, "a").close()
    trusted = Trusted(roots=(authority.certificate,))
    found = read_logs(tmp_path, tmp_path, trusted).findings
    assert "a certificate was not valid when it was signed" in str(found[0])


def test_a_job_of_the_site_signs(site: Site, tmp_path: Path) -> None:
    log = AuditLog(tmp_path, tmp_path, load_signer("run-7"), 4, "a")
    log.add("train.started")
    log.close()
    logs = read_logs(tmp_path, tmp_path, Trusted.load(["site"]))
    assert logs.findings == [] and list(logs.signatories) == ["job:run-7 of ada"]


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_other_lines_are_refused(line: bytes) -> None:
    with pytest.raises(ValueError):
        decode(line)


details = st.dictionaries(
    st.text(max_size=9),
    st.text(max_size=9) | st.integers(-(2**53), 2**53) | st.booleans() | st.lists(st.text()),
    max_size=3,
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.text(max_size=30), details, st.integers(0, 99))
def test_records_come_back(text: str, values: dict[str, Any], rank: int) -> None:
    record = Record(
        "a",
        3,
        "2026-01-02T03:04:05.000006Z",
        text,
        text,
        rank,
        "data.read",
        text,
        "",
        "done",
        "",
        values,
        "0" * 64,
    )
    line, digest = encode(record)
    assert decode(line[:-1]) == (record, digest)
    assert json.loads(line)["sha256"] == digest


def test_trace_of_a_checkpoint(tmp_path: Path) -> None:
    """Two jobs in a row, and a third that has nothing to do with them."""
    first, second, weights = "1" * 64, "2" * 64, "3" * 64
    for name, loaded, saved in [("a", "", first), ("b", first, second), ("c", "", "4" * 64)]:
        log = AuditLog(tmp_path, tmp_path, SIGNER, 64, name)
        start = log.add("train.started", object="run")
        log.add("data.opened", digest=weights, object=f"data of {name}", related=start)
        if loaded:
            log.add("checkpoint.loaded", digest=loaded, related=start)
        log.add("checkpoint.saved", digest="5" * 64, related=start)
        log.add("checkpoint.saved", digest=saved, related=start)
        log.close()
    records = read_logs(tmp_path, tmp_path, None).records
    found = [(link.depth, link.record.event, link.record.action) for link in trace(records, second)]
    assert found == [
        (0, "b#5", "checkpoint.saved"),
        (1, "b#1", "train.started"),
        (2, "b#2", "data.opened"),
        (2, "b#3", "checkpoint.loaded"),
        (3, "a#4", "checkpoint.saved"),
        (4, "a#1", "train.started"),
        (5, "a#2", "data.opened"),
    ]
    assert trace(records, "9" * 64) == []
