"""Plays a schedule for P virtual ranks in one process: proves results, finds deadlocks, counts rounds and bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives.schedule import Algorithm, Exchange, Native, Round
from mpidl.errors import CollectiveError

Mailboxes = dict[tuple[int, int], "deque[NDArray[Any]]"]


@dataclass
class Traffic:
    """What a simulated schedule cost. Bytes are those of `Exchange` rounds; a native round hides its own."""

    rounds: list[int]
    bytes_sent: list[int]
    messages: list[int]


@dataclass
class _Rank:
    rounds: Iterable[Round]
    current: Round | None = None
    sent: bool = False
    native: list[Native] = field(default_factory=list)


def simulate(algorithm: Algorithm, buffers: Sequence[NDArray[Any]]) -> Traffic:
    """Run `algorithm` on one buffer per virtual rank, in place, with the sum as the reduction.

    buffers: P arrays of shape (n,) and equal dtype. Raises CollectiveError if ranks wait for each other for ever, if a
    message has another length than its receiver expects, or if a message is never received.
    """
    size = len(buffers)
    ranks = [_Rank(iter(algorithm(rank, size, len(buffers[rank])))) for rank in range(size)]
    traffic = Traffic([0] * size, [0] * size, [0] * size)
    mail: Mailboxes = {}
    for rank in ranks:
        _advance(rank)
    while any(rank.current is not None for rank in ranks):
        moved = [_try_round(index, ranks[index], buffers[index], mail, traffic) for index in range(size)]
        if not any(moved) and not _try_native(ranks, buffers, traffic):
            stuck = {index: rank.current for index, rank in enumerate(ranks) if rank.current is not None}
            raise CollectiveError(f"deadlock: these ranks wait for ever: {stuck}")
    lost = {pair: len(queue) for pair, queue in mail.items() if queue}
    if lost:
        raise CollectiveError(f"messages were never received, (from, to): count = {lost}")
    return traffic


def _advance(rank: _Rank) -> None:
    rank.current, rank.sent = next(iter(rank.rounds), None), False


def _try_round(index: int, rank: _Rank, buffer: NDArray[Any], mail: Mailboxes, traffic: Traffic) -> bool:
    step = rank.current
    if not isinstance(step, Exchange):
        return False
    moved = False
    if not rank.sent:
        moved, rank.sent = True, True
        payload = buffer[slice(*step.send)].copy()
        if payload.size:
            mail.setdefault((index, step.to), deque()).append(payload)
            traffic.bytes_sent[index] += payload.nbytes
            traffic.messages[index] += 1
    target = buffer[slice(*step.receive)]
    queue = mail.get((step.source, index))
    if target.size and not queue:
        return moved
    if target.size and queue:
        _deliver(queue.popleft(), target, step, index)
    traffic.rounds[index] += 1
    _advance(rank)
    return True


def _deliver(payload: NDArray[Any], target: NDArray[Any], step: Exchange, index: int) -> None:
    if payload.size != target.size:
        raise CollectiveError(
            f"rank {step.source} sent {payload.size} elements where {target.size} were expected", where=f"rank {index}"
        )
    if step.combine:
        np.add(target, payload, out=target)
    else:
        target[:] = payload


def _try_native(ranks: Sequence[_Rank], buffers: Sequence[NDArray[Any]], traffic: Traffic) -> bool:
    steps = {rank.current for rank in ranks}
    if len(steps) != 1:
        return False
    step = steps.pop()
    if not isinstance(step, Native):
        return False
    total = np.sum([buffer[step.start : step.stop] for buffer in buffers], axis=0, dtype=buffers[0].dtype)
    for index, buffer in enumerate(buffers):
        buffer[step.start : step.stop] = total
        traffic.rounds[index] += 1
    for rank in ranks:
        _advance(rank)
    return True
