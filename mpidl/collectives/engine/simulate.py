"""Simulates a schedule for P ranks in one process: results, deadlocks, rounds and bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives.engine.reduction import Reducer, tree_reduce
from mpidl.collectives.schedule import Algorithm, Exchange, Native, Round, Shared
from mpidl.errors import CollectiveError

Mailboxes = dict[tuple[int, int], "deque[NDArray[Any]]"]


@dataclass
class Traffic:
    """What a simulated schedule cost, by rank.

    Attributes:
        rounds: All of them.
        bytes_sent: In exchanges; native and shared rounds hide their own.
        messages: In exchanges.
    """

    rounds: list[int]
    bytes_sent: list[int]
    messages: list[int]


class _Rank:
    """A simulated rank: its buffer, its current round, and whether that round's message is sent."""

    def __init__(self, rounds: Iterator[Round], buffer: NDArray[Any], op: str) -> None:
        self.rounds = rounds
        self.buffer = buffer
        self.reducer = Reducer(buffer, op)
        self.current: Round | None = None
        self.advance()

    def advance(self) -> None:
        self.current, self.sent = next(self.rounds, None), False
        if self.current is None or not isinstance(self.current, Exchange):
            self.reducer.round()


def simulate(algorithm: Algorithm, buffers: Sequence[NDArray[Any]], op: str = "sum") -> Traffic:
    """Run an algorithm on one buffer per simulated rank, in place.

    Args:
        algorithm: The schedule.
        buffers: P arrays of shape (n,) and equal dtype.
        op: The reduction.

    Raises:
        CollectiveError: Ranks wait for each other for ever, a message has another length than its
            receiver expects, or a message is never received.
    """
    size = len(buffers)
    ranks = [
        _Rank(iter(algorithm(rank, size, len(buffers[rank]))), buffers[rank], op)
        for rank in range(size)
    ]
    traffic = Traffic([0] * size, [0] * size, [0] * size)
    mail: Mailboxes = {}
    while any(rank.current is not None for rank in ranks):
        moved = [_try_round(index, ranks[index], mail, traffic) for index in range(size)]
        if not any(moved) and not _try_together(ranks, op, traffic):
            stuck = {
                index: rank.current for index, rank in enumerate(ranks) if rank.current is not None
            }
            raise CollectiveError(f"deadlock: these ranks wait for ever: {stuck}")
    lost = {pair: len(queue) for pair, queue in mail.items() if queue}
    if lost:
        raise CollectiveError(f"messages were never received, (from, to): count = {lost}")
    return traffic


def _try_round(index: int, rank: _Rank, mail: Mailboxes, traffic: Traffic) -> bool:
    step = rank.current
    if not isinstance(step, Exchange):
        return False
    moved = False
    if not rank.sent:
        moved, rank.sent = True, True
        rank.reducer.round(step.send)
        payload = rank.buffer[slice(*step.send)].copy()
        if payload.size:
            mail.setdefault((index, step.dest), deque()).append(payload)
            traffic.bytes_sent[index] += payload.nbytes
            traffic.messages[index] += 1
    target = rank.buffer[slice(*step.receive)]
    queue = mail.get((step.source, index))
    if target.size and not queue:
        return moved
    if target.size and queue:
        _deliver(queue.popleft(), rank, step, index)
    traffic.rounds[index] += 1
    rank.advance()
    return True


def _deliver(payload: NDArray[Any], rank: _Rank, step: Exchange, index: int) -> None:
    target = rank.buffer[slice(*step.receive)]
    if payload.size != target.size:
        raise CollectiveError(
            f"rank {step.source} sent {payload.size} elements where {target.size} were expected",
            where=f"rank {index}",
        )
    if step.reduce:
        rank.reducer.reduce(step.receive, payload)
    else:
        target[:] = payload


def _try_together(ranks: Sequence[_Rank], op: str, traffic: Traffic) -> bool:
    """Native and shared rounds: once all ranks that take part have come to the same one."""
    for step in {rank.current for rank in ranks if isinstance(rank.current, Native | Shared)}:
        members = list(step.members) if isinstance(step, Shared) else list(range(len(ranks)))
        if any(ranks[member].current != step for member in members):
            continue
        _together(step, [ranks[member].buffer[step.start : step.stop] for member in members], op)
        for member in members:
            traffic.rounds[member] += 1
            ranks[member].advance()
        return True
    return False


def _together(step: Native | Shared, parts: list[NDArray[Any]], op: str) -> None:
    what = step.what if isinstance(step, Shared) else "all_reduce"
    total = tree_reduce([part.copy() for part in parts], op)
    if what == "reduce":
        for part in parts[1:]:
            part[:] = np.zeros_like(part)  # undefined: nobody may rely on it
        parts[0][:] = total
        return
    value = total if what == "all_reduce" else parts[0].copy()
    for part in parts:
        part[:] = value
