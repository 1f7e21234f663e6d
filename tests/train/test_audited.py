"""What a run tells the audit log, and what becomes of it when the run fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from mpidl.config import Config, build_config
from mpidl.errors import ConfigError, SecurityError
from mpidl.security.audit.folder import read_logs
from mpidl.security.audit.record import Record
from mpidl.security.signing import verify
from mpidl.security.trusted import Trusted
from mpidl.train.events import Observer, StepRecord
from mpidl.train.trainer import Trainer
from tests.jobs.conftest import blobs, write
from tests.security.authority import new_ec, write_key


class Failing(Observer):
    def step_finished(self, record: StepRecord) -> None:
        raise RuntimeError("a bug")


class Stopping(Observer):
    @property
    def stop_requested(self) -> bool:
        return True


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run of four steps with an audit."""
    write(tmp_path / "train", blobs(40, 0), 2)
    write_key(tmp_path / "k.pem", new_ec())
    security = {
        "identity": str(tmp_path / "k.pem"),
        "sign_checkpoints": True,
        "audit": {"folder": str(tmp_path / "audit")},
    }
    tree: dict[str, Any] = {
        "data": {"train": str(tmp_path / "train")},
        "model": {"name": "mlp", "hidden": [4]},
        "train": {"output": str(tmp_path / "run"), "global_batch": 10},
        "security": security,
    }
    return build_config(tree, "test")


def records(folder: Path) -> list[Record]:
    logs = read_logs(folder / "audit", folder / "audit", Trusted.load([folder / "k.pub"]))
    assert logs.findings == []
    return [record for record in logs.records if not record.action.startswith("log.")]


def train(config: Config, *observers: Observer, **options: Any) -> None:
    trainer = Trainer(config, context(), observers=list(observers))
    trainer.prepare(**options)
    trainer.run()
    trainer.close()


def context() -> Any:
    from mpidl.comm.context import init

    return init()


def test_a_run(config: Config, tmp_path: Path) -> None:
    train(config)
    found = records(tmp_path)
    assert [record.action for record in found] == [
        "train.started",
        "data.opened",
        "data.read",
        "checkpoint.saved",
        "train.finished",
    ]
    assert {record.related for record in found[1:]} == {found[0].event}
    assert found[0].details["ranks"] == 1 and found[0].details["model"] == "mlp"
    assert found[2].details["files"] == sorted(p.name for p in (tmp_path / "train").glob("*.h5"))
    saved = Path(found[3].object)
    verify(saved, Trusted.load([tmp_path / "k.pub"]))
    assert found[-1].details["steps"] == 4 and found[-1].object == str(saved)


def test_ends_of_runs(config: Config, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        train(config, Failing())
    failed = records(tmp_path)[-1]
    assert (failed.action, failed.decision) == ("train.failed", "failed")
    assert failed.details["error"] == "a bug"
    train(config, Stopping(), overwrite=True)
    assert records(tmp_path)[-1].action == "train.stopped"
    with pytest.raises(ConfigError, match="holds the checkpoints of an earlier run"):
        train(config)
    failed = records(tmp_path)[-1]
    assert failed.action == "train.failed" and "earlier run" in str(failed.details["error"])
    train(config, resume=True)
    found = [record.action for record in records(tmp_path)][-6:]
    assert found[:3] == ["train.started", "data.opened", "checkpoint.loaded"]
    assert found[-1] == "train.finished"


def test_denied(config: Config, tmp_path: Path) -> None:
    strict = replace(config.security, require_signatures=True, trusted=(str(tmp_path / "k.pub"),))
    with pytest.raises(SecurityError, match="is not signed"):
        train(replace(config, security=strict))
    denied = records(tmp_path)[-1]
    assert (denied.action, denied.decision) == ("train.failed", "denied")


def test_a_log_that_cannot_be_written(config: Config, tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("in its place")
    with pytest.raises(Exception, match="audit log cannot be written"):
        train(config)
    assert not (tmp_path / "run").exists()
