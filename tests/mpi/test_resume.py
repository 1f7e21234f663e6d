"""A run that is stopped and resumed equals one that never stopped, bit for bit.

For all synchronous strategies, optimizers and compressors.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.compression import COMPRESSORS
from mpidl.config import build_config
from mpidl.data.formats.source import Source
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.observe.metrics import read_metrics
from mpidl.optim import OPTIMIZERS
from mpidl.sync import STRATEGIES, SynchronousStrategy
from mpidl.train import checkpoint as ckpt
from mpidl.train.events import Observer
from mpidl.train.trainer import Trainer, usual_observers

pytestmark = pytest.mark.mpi
SAMPLES, BATCH, EPOCH = 250, 12, 21  # the last batch of an epoch has 10 samples
STOP = 30  # in the middle of the second epoch, and of a period between averages
COMPRESSION = {"topk": {"ratio": 0.05}}  # options in these tests; the defaults for others
TREES: dict[str, dict[str, Any]] = {
    **{
        name: {"sync": {"strategy": name}}
        for name in STRATEGIES
        if issubclass(STRATEGIES[name], SynchronousStrategy)
    },
    **{name: {"optim": {"name": name, "lr": 0.003}} for name in OPTIMIZERS},
    **{
        name: {
            "sync": {
                "compression": {"name": name} | COMPRESSION.get(name, {}),
                "bucket_mib": 0.002,
                "overlap": "layers",
            }
        }
        for name in COMPRESSORS
    },
    "buckets": {"sync": {"overlap": "layers", "bucket_mib": 0.001, "noise_scale": True}},
    "no error feedback": {"sync": {"compression": {"name": "int8", "error_feedback": False}}},
    "zero 1": {"sync": {"strategy": "zero", "stage": 1}},
    "zero 3": {"sync": {"strategy": "zero", "stage": 3, "bucket_mib": 0.001}},
    "local": {"sync": {"strategy": "local_sgd", "steps": 4}},
    "post-local": {"sync": {"strategy": "local_sgd", "steps": 4, "start_epoch": 0.5}},
    "slow momentum": {"sync": {"strategy": "local_sgd", "steps": 4, "slow_momentum": 0.5}},
    "gossip now and then": {"sync": {"strategy": "gossip", "period": 2}},
    "random gossip": {"sync": {"strategy": "gossip", "graph": "random"}},
    "push-sum": {"sync": {"strategy": "gossip", "graph": "random", "push_sum": True}},
    "batch norm of each rank": {
        "sync": {"strategy": "local_sgd", "steps": 4},
        "model": {"name": "resnet", "size": "tiny", "synchronized": False},
    },
    "dropout": {"model": {"name": "vit", "size": "tiny", "dropout": 0.2}},
}
REPLICAS = [  # whose replicas differ within an epoch
    "local",
    "post-local",
    "slow momentum",
    "gossip now and then",
    "push-sum",
    "batch norm of each rank",
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Images of 8 x 8 bytes with 4 classes, in a folder that all ranks see."""
    from mpidl.comm.context import init

    context = init()
    made = Path(context.on_root(tempfile.mkdtemp, "making a folder", str))
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 120, (SAMPLES, 8, 8), np.uint8),
        "label": rng.integers(0, 4, SAMPLES),
    }
    arrays["image"][:, :4, :4] += (arrays["label"] * 20).astype(np.uint8)[:, None, None]
    source = Source(
        SAMPLES, lambda low, high: {name: array[low:high] for name, array in arrays.items()}
    )
    write_dataset(source, made / "data", WriteOptions(3), context, lambda count: None)
    yield made
    context.barrier()
    if context.is_root:
        shutil.rmtree(made)


def train(
    context: Any, folder: Path, name: str, output: str, *, resume: bool = False, **settings: Any
) -> list[str]:
    """Train, and return what rank 0 was told."""
    tree: dict[str, Any] = {
        "data": {"train": f"{folder}/data", "test": f"{folder}/data"},
        "model": {"name": "mlp", "hidden": [24]},
        "optim": {"lr": 0.02},
    } | TREES[name]
    tree["train"] = {
        "epochs": 2,
        "global_batch": BATCH,
        "output": f"{folder}/{output}",
        "log_every": 1,
    }
    for key, value in settings.items():
        section, _, option = key.partition("_")
        tree[section] = tree.get(section, {}) | {option: value}
    said: list[str] = []
    config = build_config(tree, "test")
    observers = usual_observers(config, context, said.append, quiet=True)
    trainer = Trainer(config, context, say=said.append, observers=observers)
    trainer.prepare(resume=resume, overwrite=not resume)
    trainer.run()
    trainer.close()
    return said


class Signal(Observer):
    """Stands for `StopRequest`; `after` steps asked for, a signal comes."""

    def __init__(self, after: int) -> None:
        self.after = after

    @property
    def stop_requested(self) -> bool:
        self.after -= 1
        return self.after < 0


def assert_equal(context: Any, folder: Path, first: str, second: str) -> None:
    """Same parameters, optimizer, run state of all ranks, and losses of all steps."""
    with context.fail_together("comparing"):
        ends = [
            ckpt.read(ckpt.list_checkpoints(folder / name / "checkpoints")[0])
            for name in (first, second)
        ]
        assert ends[0].meta.step == ends[1].meta.step == 2 * EPOCH
        pairs = [(ends[0].buffers, ends[1].buffers), (ends[0].state.shared, ends[1].state.shared)]
        own = [ckpt.read_own(end.path, end.meta, context.rank) for end in ends]
        for a, b in (*pairs, (own[0], own[1])):
            assert a.keys() == b.keys()
            for key in a:
                np.testing.assert_array_equal(a[key], b[key], err_msg=key)
        steps = [
            [
                (r["step"], r["loss"])
                for r in read_metrics(folder / name / "metrics.jsonl")
                if r["kind"] == "step"
            ]
            for name in (first, second)
        ]
        assert steps[0] == steps[1] and len(steps[0]) == 2 * EPOCH


def skip_unless(context: Any, *sizes: int) -> None:
    if context.size not in sizes:
        pytest.skip(f"for {sizes} ranks")


@pytest.mark.parametrize("name", TREES)
def test_resumed_equals_straight(context: Any, folder: Path, name: str) -> None:
    skip_unless(context, 2, 3)
    train(context, folder, name, "straight")
    train(context, folder, name, "halves", train_max_steps=STOP)
    said = train(context, folder, name, "halves", resume=True)
    assert not context.is_root or any(f"resuming at step {STOP}" in text for text in said)
    assert not any("not used" in text for text in said), said
    assert_equal(context, folder, "straight", "halves")


def test_ranks_without_samples_take_part_in_the_passes_of_stage_3(
    context: Any, folder: Path
) -> None:
    """The last batch has 2 samples; a rank without any gathers parameters with the others."""
    skip_unless(context, 3)
    for name in ("allreduce", "zero 3"):
        train(context, folder, name, name, train_global_batch=31)
    with context.fail_together("comparing"):
        ends = [
            ckpt.read(ckpt.list_checkpoints(folder / name / "checkpoints")[0]).buffers["parameters"]
            for name in ("allreduce", "zero 3")
        ]
        np.testing.assert_allclose(*ends, rtol=1e-4, atol=1e-5)


def test_a_synchronous_server_is_resumed_at_the_end_of_an_epoch(context: Any, folder: Path) -> None:
    """Two workers: sums of two do not depend on who comes first."""
    skip_unless(context, 3)
    TREES["server"] = {"sync": {"strategy": "parameter_server", "staleness": 0}}
    train(context, folder, "server", "straight")
    train(context, folder, "server", "halves", train_max_steps=EPOCH)
    train(context, folder, "server", "halves", resume=True)
    with context.fail_together("comparing"):
        ends = [
            ckpt.read(ckpt.list_checkpoints(folder / one / "checkpoints")[0])
            for one in ("straight", "halves")
        ]
        for key in ends[0].buffers:
            np.testing.assert_array_equal(ends[0].buffers[key], ends[1].buffers[key], err_msg=key)


@pytest.mark.parametrize("name", REPLICAS)
def test_when_checkpoints_are_written_changes_no_result(
    context: Any, folder: Path, name: str
) -> None:
    """Replicas are averaged for the file, and go on as they were."""
    skip_unless(context, 3)
    train(context, folder, name, "rare")
    train(context, folder, name, "frequent", checkpoint_every_steps=7)
    assert_equal(context, folder, "rare", "frequent")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("topk", "strategy.compression.residual"),
        ("push-sum", "strategy.weight"),
        ("slow momentum", "ranks"),
    ],
)
def test_other_ranks_keep_what_has_meaning(
    context: Any, folder: Path, name: str, words: str
) -> None:
    """Stopped on one rank less than it is resumed on."""
    from mpidl.comm.context import init
    from mpidl.comm.mpi import load

    skip_unless(context, 3, 4)
    small = context.comm.Split(
        0 if context.rank < context.size - 1 else load().UNDEFINED, context.rank
    )
    if small != load().COMM_NULL:
        train(init(small), folder, name, "other", train_max_steps=STOP)
    context.barrier()
    said = train(context, folder, name, "other", resume=True)
    if context.is_root:
        assert any("not used" in text and words in text for text in said), said
        assert (
            ckpt.list_checkpoints(folder / "other" / "checkpoints")[0].name
            == f"step-{2 * EPOCH:08d}.h5"
        )


@pytest.mark.parametrize("name", ["allreduce", "local"])
def test_an_evaluation_that_a_signal_left_out_is_made_up(
    context: Any, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes in the last step of the run: no time to evaluate.

    The evaluation before it is not passed off as that of the last step.
    """
    skip_unless(context, 1, 2)
    train(context, folder, name, "straight")
    with monkeypatch.context() as patched:
        patched.setattr("mpidl.train.trainer.StopRequest", lambda: Signal(2 * EPOCH - 1))
        train(context, folder, name, "signalled")
    train(context, folder, name, "signalled", resume=True)
    assert_equal(context, folder, "straight", "signalled")
    with context.fail_together("comparing"):
        straight, signalled = (
            ckpt.list_checkpoints(folder / one / "checkpoints")[0]
            for one in ("straight", "signalled")
        )
        assert ckpt.read(straight).meta.metrics == ckpt.read(signalled).meta.metrics
        assert ckpt.read(straight).meta.best_score == ckpt.read(signalled).meta.best_score


def test_a_checkpoint_just_before_the_last_evaluation_gets_it(context: Any, folder: Path) -> None:
    """`every_steps` saves at the step at which the run ends, and is then evaluated."""
    skip_unless(context, 1, 2)
    for output, settings in (("once", {}), ("twice", {"checkpoint_every_steps": STOP})):
        train(context, folder, "local", output, train_max_steps=STOP, **settings)
    with context.fail_together("comparing"):
        once, twice = (
            ckpt.read(ckpt.list_checkpoints(folder / one / "checkpoints")[0])
            for one in ("once", "twice")
        )
        assert once.meta.metrics == twice.meta.metrics and once.meta.metrics["step"] == STOP


def test_local_steps_of_a_run_that_averaged_gradients_so_far(context: Any, folder: Path) -> None:
    """They begin at a step of the run, which is over, not so many steps after it was resumed."""
    skip_unless(context, 1, 2)
    train(context, folder, "allreduce", "other", train_max_steps=STOP)
    train(context, folder, "post-local", "other", resume=True)
    with context.fail_together("looking"):
        end = ckpt.read(ckpt.list_checkpoints(folder / "other" / "checkpoints")[0])
        assert end.state.shared["strategy.count"] == 2 * EPOCH


OTHER = {
    "rank": (
        {"compression": {"name": "powersgd", "rank": 2}},
        {"compression": {"name": "powersgd", "rank": 4}},
        "compression.factor",
    ),
    "feedback": (
        {"compression": "topk"},
        {"compression": {"name": "topk", "error_feedback": False}},
        "compression.residual",
    ),
    "buckets": (
        {"compression": "int8", "overlap": "layers", "bucket_mib": 0.002},
        {"overlap": "off"},
        "compression.owner",
    ),
    "noise": ({"noise_scale": True}, {"noise_scale": False}, "noise.signal"),
}


@pytest.mark.parametrize("name", OTHER)
def test_what_other_settings_cannot_use_is_said(
    context: Any, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless(context, 2)
    before, after, words = OTHER[name]
    monkeypatch.setitem(TREES, "before", {"sync": before})
    monkeypatch.setitem(TREES, "after", {"sync": before | after})
    train(context, folder, "before", name, train_max_steps=STOP)
    said = train(context, folder, "after", name, resume=True)
    assert any("not used" in text and words in text for text in said), said


def test_what_is_the_same_on_all_ranks_is_written_once(context: Any, folder: Path) -> None:
    """Each rank's own part costs a checksum and, with a serial h5py, a turn at the file."""
    skip_unless(context, 2, 3)
    for name, own in (("allreduce", False), ("local", True)):
        train(context, folder, name, "once", train_max_steps=STOP)
        with context.fail_together("looking"):
            held = ckpt.read(ckpt.list_checkpoints(folder / "once" / "checkpoints")[0]).meta.own
            assert (
                bool(held) == own
                and ("average.loss" in held) == own
                and "strategy.updates" not in held
            )


def test_residuals_of_bucket_sizes_that_were_tried_are_forgotten(
    context: Any, folder: Path
) -> None:
    """Else ranks and checkpoints would hold a residual of the whole model for each size."""
    from mpidl.backend.numpy_ops import NumpyOps
    from mpidl.nn import Dense, Model
    from mpidl.options import Place
    from mpidl.sync import AllReduce, StepScalars

    skip_unless(context, 2)
    model = Model([Dense(512), Dense(512), Dense(8)], (256,), NumpyOps())
    options = AllReduce.Options.read(
        {"overlap": "layers", "tune_buckets": True, "compression": "topk"}, Place()
    )
    strategy = AllReduce(model.parameters, context, options)
    assert strategy.tuner is not None
    while strategy.tuner.best is None:
        model.parameters.gradients[...] = 1.0
        strategy.step(StepScalars(count=1.0), lambda: None)
    names = {bucket.name for bucket in strategy.dispatcher.buckets}
    assert {name.partition(":")[2] for name in strategy.state().own if "residual" in name} == names


def test_another_order_of_the_data_within_an_epoch_is_said(context: Any, folder: Path) -> None:
    skip_unless(context, 1, 2)
    for stop, wanted in ((STOP, True), (EPOCH, False)):
        train(context, folder, "allreduce", "order", train_max_steps=stop)
        said = train(context, folder, "allreduce", "order", resume=True, data_shuffle=False)
        assert any("data.shuffle changed" in text for text in said) == wanted
