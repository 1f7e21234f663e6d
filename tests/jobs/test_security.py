"""Whole jobs under a security section: signed data and checkpoints, audit, provenance."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

from mpidl.cli.main import main
from mpidl.train import checkpoint as ckpt
from tests.jobs.helpers import Job, mpidl
from tests.jobs.test_serve import Serving
from tests.security.authority import new_ec, write_key


@pytest.fixture
def secured(run_folder: Path) -> Path:
    """The run, with a key and a [security] section; its data are not signed yet."""
    write_key(run_folder / "ada.pem", new_ec())
    section = (
        "[security]\nrequire_signatures = true\nsign_checkpoints = true\n"
        f'trusted = ["{run_folder}/ada.pub"]\nidentity = "{run_folder}/ada.pem"\n'
        f'[security.audit]\nfolder = "{run_folder}/audit"\nheads = "{run_folder}/heads"\n'
    )
    (run_folder / "site.toml").write_text(section)
    with open(run_folder / "run.toml", "a") as file:
        file.write(section)
    return run_folder


def sign(folder: Path, *names: str) -> None:
    for name in names:
        assert main(["sign", str(folder / name), "--identity", str(folder / "ada.pem")]) == 0


def train(folder: Path, ranks: int, *args: str) -> Job:
    return mpidl(ranks, "train", str(folder / "run.toml"), "--json", *args)


def audit(folder: Path, *args: str) -> list[str]:
    return [
        "audit",
        *args,
        "--folder",
        str(folder / "audit"),
        "--heads",
        str(folder / "heads"),
        "--json",
    ]


def test_signed_and_audited(secured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unsigned = train(secured, 2)
    assert unsigned.status == 1 and "is not signed: there is no model.sig" in unsigned.err
    sign(secured, "train", "test")
    first = train(secured, 2, "--set", "train.max_steps=21")
    assert first.status == 0, first.err
    folder = secured / "run" / "checkpoints"
    middle = ckpt.list_checkpoints(folder)[0]
    for path in (middle, folder / "best.h5"):
        assert main(["verify", str(path), "--trusted", str(secured / "ada.pub")]) == 0
    # a newest one that nobody has signed is passed over, and an old one under a newer name
    for number, suffixes in [(99, ("",)), (98, ("", ".sig"))]:
        for suffix in suffixes:
            shutil.copy(f"{middle}{suffix}", folder / f"step-000000{number}.h5{suffix}")
    capsys.readouterr()
    assert main(["train", str(secured / "run.toml"), "--resume"]) == 0
    said = capsys.readouterr().err
    assert "is not signed" in said and "is of step 21: it was renamed" in said
    last = ckpt.list_checkpoints(folder)[0]
    assert len(list(folder.glob("step-*.h5.sig"))) == len(ckpt.list_checkpoints(folder))
    capsys.readouterr()
    assert main([*audit(secured, "verify"), "--trusted", str(secured / "ada.pub")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["logs"] == 3 and found["findings"] == []
    assert main(audit(secured, "trace", str(last))) == 0
    history = json.loads(capsys.readouterr().out)["history"]
    assert [(event["depth"], event["action"]) for event in history if event["depth"] < 2] == [
        (0, "checkpoint.saved"),
        (1, "train.started"),
    ]
    loaded = next(event for event in history if event["action"] == "checkpoint.loaded")
    assert loaded["object"] == str(middle)
    assert {event["object"] for event in history if event["action"] == "data.opened"} == {
        str(secured / "train"),
        str(secured / "test"),
    }
    check_records(secured, capsys)


def check_records(secured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was denied, and who has read what."""
    assert main(audit(secured, "show", "--only", "decision=denied")) == 0
    (denied,) = json.loads(capsys.readouterr().out)["records"]
    assert denied["action"] == "train.failed" and "is not signed" in denied["details"]["error"]
    assert main(audit(secured, "show", "--only", "action=data.read")) == 0
    read = json.loads(capsys.readouterr().out)["records"]
    assert {event["rank"] for event in read} == {0, 1}
    files = {name for event in read for name in event["details"]["files"]}
    assert files == {path.name for path in (secured / "train").glob("*.h5")}


def test_commands_obey_the_site(
    secured: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPIDL_SECURITY", str(secured / "site.toml"))
    sign(secured, "train", "test")
    config, run = str(secured / "run.toml"), str(secured / "run")
    assert main(["train", config, "--set", "train.max_steps=5"]) == 0
    exported = str(secured / "m.safetensors")
    assert main(["export", run, exported]) == 0
    assert main(["verify", exported]) == 0
    weaker = ["--set", "security.require_signatures=false", "--set", "security.audit.folder=''"]
    newest = ckpt.list_checkpoints(secured / "run" / "checkpoints")[0]
    (secured / "test" / "model.sig").unlink()
    data = [f"{secured}/train", "--out", f"{secured}/p.h5"]
    for command, words in [
        (["evaluate", run], "is not signed"),
        (["train", config, "--overwrite", *weaker], "is not signed"),
        (["predict", str(newest), *data], "has changed since it was signed"),
    ]:
        capsys.readouterr()
        if command[0] == "predict":
            content = bytearray(newest.read_bytes())
            content[len(content) // 2] ^= 1
            newest.write_bytes(content)
        assert main(command) == 1
        assert words in capsys.readouterr().err
    assert not (secured / "p.h5").exists()
    assert main([*audit(secured, "verify")]) == 0
    capsys.readouterr()
    assert main(audit(secured, "show")) == 0
    records = json.loads(capsys.readouterr().out)["records"]
    kinds = [(event["action"], event["decision"]) for event in records]
    for wanted in [
        ("export.written", "done"),
        ("evaluate.failed", "denied"),
        ("train.failed", "denied"),
        ("predict.failed", "denied"),
    ]:
        assert wanted in kinds


def test_reproduce(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal bits on other rank counts, also after a resume; what differs is said."""
    write_key(run_folder / "ada.pem", new_ec())
    key, trusted = str(run_folder / "ada.pem"), ["--trusted", str(run_folder / "ada.pub")]
    half = ["--set", "train.max_steps=10"]
    assert mpidl(2, "train", str(run_folder / "run.toml"), *half).status == 0
    longer = ["--resume", "--set", "train.max_steps=25"]
    assert main(["train", str(run_folder / "run.toml"), *longer]) == 0
    assert main(["bundle", str(run_folder / "run"), "--identity", key]) == 0
    bundle = run_folder / "run" / "provenance.json"
    common = ["reproduce", str(bundle), "--json", *trusted, "--output"]
    again = mpidl(4, *common, str(run_folder / "again"))
    assert again.status == 0, again.err
    assert again.result["equal"] and again.result["differ"] == []
    assert "ranks: 1, now 4" in again.result["changes"]
    shutil.copytree(run_folder / "train", run_folder / "other")
    manifest = run_folder / "other" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    moved = ["--set", f"data.train={run_folder}/other"]
    capsys.readouterr()
    assert main([*common, str(run_folder / "moved"), *moved, "--set", "train.seed=3"]) == 1
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not again["equal"] and len(again["differ"]) == 8
    assert f"the data: {run_folder}/train" in again["changes"]
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.write_bytes(content)
    assert main([*common, str(run_folder / "forged")]) == 1
    assert not (run_folder / "forged").exists()


def test_served_answers_are_counted(
    secured: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(secured, "train", "test")
    assert main(["train", str(secured / "run.toml"), "--set", "train.max_steps=5"]) == 0
    newest = ckpt.list_checkpoints(secured / "run" / "checkpoints")[0]
    (secured / "models.toml").write_text('[models.cnn]\npath = "run"\n')
    monkeypatch.setenv("MPIDL_SECURITY", str(secured / "site.toml"))
    server = Serving(secured / "models.toml", ranks=1)
    client = http_client.InferenceServerClient(server.http)
    image = http_client.InferInput("image", [1, 10, 10], "FP32")
    image.set_data_from_numpy(np.zeros((1, 10, 10), np.float32))
    for _ in range(3):
        client.infer("cnn", [image])
    for path in (newest, secured / "run" / "checkpoints" / "best.h5"):
        path.with_name(path.name + ".sig").unlink(missing_ok=True)
    newest.touch()
    with pytest.raises(InferenceServerException, match="is not signed"):
        client.load_model("cnn")
    client.infer("cnn", [image])
    client.close()
    assert server.stop().status == 75
    capsys.readouterr()
    assert main(audit(secured, "show")) == 0
    records = json.loads(capsys.readouterr().out)["records"]
    found = [(record["action"], record["decision"]) for record in records]
    assert found[-6:-1] == [
        ("serve.started", "done"),
        ("model.loaded", "done"),
        ("model.refused", "denied"),
        ("serve.answered", "done"),
        ("serve.finished", "done"),
    ]
    assert records[-3]["details"] == {"version": "1", "answers": 4, "refused": 0}
    assert records[-5]["digest"] == hashlib.sha256(newest.read_bytes()).hexdigest()
