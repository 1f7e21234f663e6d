"""What both contracts promise, of every strategy in the registry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mpidl.errors import ConfigError
from mpidl.sync import STRATEGIES, AsynchronousStrategy, RunInfo, SynchronousStrategy

RUN = RunInfo(ranks=4, micro_batches=4)
REFUSED: dict[str, Any] = {
    "train.precision": {"precision": "float16"},
    "checkpoint.every_steps": {"checkpoint_steps": 5},
    "data.driver": {"collective_reads": True},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_it_has_one_of_the_two_contracts(name: str) -> None:
    kind = STRATEGIES[name]
    assert issubclass(kind, SynchronousStrategy) != issubclass(kind, AsynchronousStrategy)
    assert not kind.__abstractmethods__
    kind.check(kind.Options(), RUN)


@pytest.mark.parametrize("where", REFUSED)
@pytest.mark.parametrize("name", STRATEGIES)
def test_asynchronous_ones_refuse_what_needs_ranks_in_step(name: str, where: str) -> None:
    kind = STRATEGIES[name]
    run = replace(RUN, **REFUSED[where])
    if issubclass(kind, SynchronousStrategy):
        kind.check(kind.Options(), run)
        return
    with pytest.raises(ConfigError) as caught:
        kind.check(kind.Options(), run)
    assert caught.value.where == where and caught.value.remedy


@pytest.mark.parametrize("name", STRATEGIES)
def test_batch_norm_over_all_ranks_needs_passes_in_lockstep(name: str) -> None:
    kind = STRATEGIES[name]
    run = replace(RUN, needs_collective=True)
    if kind.runs_in_lockstep(kind.Options()):
        kind.check(kind.Options(), run)
    else:
        with pytest.raises(ConfigError, match="batch norm over all ranks"):
            kind.check(kind.Options(), run)
    kind.check(kind.Options(), replace(RUN, ranks=0, needs_collective=True))  # not known yet


@pytest.mark.parametrize("name", STRATEGIES)
def test_at_least_one_rank_trains(name: str) -> None:
    kind = STRATEGIES[name]
    if kind.training_ranks(kind.Options(), 1):
        assert kind.training_ranks(kind.Options(), 4) <= 4
        return
    with pytest.raises(ConfigError, match="leave no worker"):
        kind.check(kind.Options(), replace(RUN, ranks=1))


@pytest.mark.parametrize("name", STRATEGIES)
def test_shared_host_memory_is_refused_on_gpus(name: str) -> None:
    kind = STRATEGIES[name]
    run = replace(RUN, host_memory=False)
    if issubclass(kind, AsynchronousStrategy) and kind.host_only:
        with pytest.raises(ConfigError, match="shares host memory"):
            kind.check(kind.Options(), run)
    else:
        kind.check(kind.Options(), run)
