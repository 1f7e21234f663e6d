"""What a rank really holds in memory, as the system counts it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.jobs.helpers import finish, start

SCRIPT = """
import json, sys
import numpy as np
import mpidl
from mpidl.backend.numpy_ops import NumpyOps
from mpidl.comm.context import init
from mpidl.nn import Dense, Model, CrossEntropy
from mpidl.optim import Adam
from mpidl.sync import AllReduce, Zero
from mpidl.train.engine import StepBatch, TrainingStep

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

context, kind = init(), sys.argv[1]
model = Model([*(Dense(1024, relu=True) for _ in range(24)), Dense(4)], (1024,), NumpyOps())
whole = model.parameters.length * 4 * 4 / 2**20  # parameters, gradients, two moments
before = peak()
parameters = model.parameters
stage_3 = Zero.Options(stage=3)
zero = kind == "zero"
strategy = Zero(parameters, context, stage_3) if zero else AllReduce(parameters, context)
optimizer = Adam(strategy.shard, model.ops)
strategy.initialize(0)
strategy.start()
training = TrainingStep(model, CrossEntropy(model.ops), strategy, optimizer, context)
rng, losses = np.random.default_rng(context.rank), []
for step in range(4):
    x, y = rng.standard_normal((8, 1024)).astype(np.float32), np.arange(8) % 4
    batch = StepBatch.whole(x, y, context.size)
    losses.append(training.run(iter([batch]), 1e-4, step=step).loss / 16)
if context.is_root:
    print(json.dumps({"whole": whole, "used": peak() - before, "losses": losses}))
"""


def measure(folder: Path, kind: str) -> dict[str, float]:
    script = folder / "memory.py"
    script.write_text(SCRIPT)
    job = finish(start(2, "python", str(script), kind))
    assert job.status == 0, job.err
    found: dict[str, float] = json.loads(job.out.strip().splitlines()[-1])
    return found


def test_stage_3_trains_a_model_that_exceeds_the_budget_of_a_rank(tmp_path: Path) -> None:
    """Parameters, gradients and optimizer state of 385 MiB on two ranks that may have 290 each.

    Without ZeRO a rank needs more.
    """
    budget = 290
    sharded, plain = measure(tmp_path, "zero"), measure(tmp_path, "allreduce")
    assert sharded["whole"] > budget and plain["used"] > budget
    assert sharded["used"] < budget, sharded
    for one, other in zip(sharded["losses"], plain["losses"], strict=True):  # type: ignore[arg-type]
        assert abs(one - other) < 1e-4
