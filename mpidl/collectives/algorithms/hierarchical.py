"""Two levels: reduce in the shared memory of each node, all-reduce between the nodes' first ranks, broadcast in the nodes.

With one node it is a single round in shared memory (kernels/cpu/shared.c).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from mpidl.collectives.algorithms.rabenseifner import rabenseifner
from mpidl.collectives.algorithms.ring import ring
from mpidl.collectives.schedule import Algorithm, Exchange, Native, Schedule, Shared


def members_of(nodes: Sequence[int], node: int) -> tuple[int, ...]:
    """The ranks on `node`, ascending; nodes[r] is the node of rank r."""
    return tuple(rank for rank, place in enumerate(nodes) if place == node)


@cache
def hierarchical(nodes: tuple[int, ...], between: Algorithm = ring) -> Algorithm:
    """The all-reduce for this placement of ranks. nodes: the node of each rank; between: the algorithm for the leaders."""
    groups = {node: members_of(nodes, node) for node in sorted(set(nodes))}
    leaders = sorted(members[0] for members in groups.values())

    def algorithm(rank: int, size: int, length: int) -> Schedule:
        members = groups[nodes[rank]]
        if len(groups) == 1:
            yield Shared("all_reduce", 0, length, members)
            return
        if len(members) > 1:
            yield Shared("reduce", 0, length, members)
        if rank == members[0]:
            yield from _translated(between(leaders.index(rank), len(leaders), length), leaders)
        if len(members) > 1:
            yield Shared("broadcast", 0, length, members)

    return algorithm


@cache
def in_fixed_order(nodes: tuple[int, ...]) -> Algorithm | None:
    """The form whose sums run along one binary tree over all ranks; None where the placement does not allow it.

    It needs equally large nodes, of a power of two of consecutive ranks.
    """
    size = len(nodes) // (max(nodes) + 1)
    even = all(node == rank // size for rank, node in enumerate(nodes)) if size else False
    return hierarchical(nodes, rabenseifner) if even and size & (size - 1) == 0 else None


def _translated(schedule: Schedule, ranks: Sequence[int]) -> Schedule:
    """The rounds of a schedule among `ranks`, with their own numbers."""
    for step in schedule:
        if isinstance(step, Exchange):
            yield step._replace(to=ranks[step.to], source=ranks[step.source])
        else:
            assert isinstance(step, Native | Shared)
            raise TypeError("only exchanges can be done by some of the ranks")
