"""Epochs of strategies in which every rank goes its own pace: steps are claimed one by one until the epoch's budget is used
up."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mpidl.data import Batch
from mpidl.observe.metrics import MetricsLog
from mpidl.observe.progress import Progress
from mpidl.sync import AsynchronousStrategy, StepScalars
from mpidl.train.signals import StopRequest

if TYPE_CHECKING:
    from mpidl.train.trainer import Trainer


def run_epoch(
    trainer: Trainer,
    steps: int,
    request: StopRequest,
    metrics: MetricsLog | None,
    progress: Progress,
) -> StepScalars:
    """`steps` steps of a synchronous run, by single workers. Collective. Returns sums over all ranks, also of stop.

    An error on one rank is raised there, and ends the job: the others do not wait for this one.
    """
    strategy, first = trainer.strategy, trainer.at.step
    assert isinstance(strategy, AsynchronousStrategy)
    total, done = StepScalars(), 0
    strategy.begin_epoch(steps * strategy.workers)
    batches, begun = _for_ever(trainer, first), time.monotonic()
    strategy.serve()
    while not request.requested:
        ticket = strategy.next_step()
        if ticket is None:
            break
        own = StepScalars()
        step = first + ticket // strategy.workers
        lr = trainer.rate.at(step)
        trainer.gradients.compute(step, next(batches), own)
        if not math.isfinite(own.loss):
            raise trainer.not_finite()
        trainer.clip()
        strategy.apply_gradients(lr, trainer.optimizer.step)
        total.add(own)
        done += 1
        trainer.report(step + 1, own, lr, metrics, progress, int(own.count) * strategy.workers)
    trainer.worked.seconds += time.monotonic() - begun
    trainer.worked.samples += int(total.count)
    strategy.end_epoch()
    total.stop = float(request.requested)
    sums = strategy.meet(total)
    finished = sum(trainer.context.allgather_object(done)) // strategy.workers
    trainer.at.step = first + (steps if not sums.stop else min(finished, steps))
    return sums


def _for_ever(trainer: Trainer, first: int) -> Iterator[Batch]:
    """This rank's batches, epoch after epoch in orders of their own: a fast rank needs more than one in an epoch of the run."""
    steps, loader = trainer.loader.steps, trainer.loader
    epoch, step = divmod(first, steps)
    while True:
        for batch in loader.epoch(epoch, step):
            if batch.count:
                yield batch
        epoch, step = epoch + trainer.config.train.epochs, 0
