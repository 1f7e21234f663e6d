"""Two levels: shared memory inside each node, messages between the nodes' first ranks.

Reduce in each node, all-reduce between the leaders, broadcast in each node. With one node it is a
single round in shared memory (kernels/cpu/shared.c).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from mpidl.collectives.algorithms.rabenseifner import rabenseifner
from mpidl.collectives.algorithms.ring import ring
from mpidl.collectives.schedule import Algorithm, AllReduce, Exchange, Placement, Schedule, Shared


def ranks_on(placement: Placement, node: int) -> tuple[int, ...]:
    """The ranks on `node`, ascending."""
    return tuple(rank for rank, place in enumerate(placement) if place == node)


@cache
def hierarchical(placement: Placement, between: Algorithm = ring) -> Algorithm:
    """The all-reduce for a placement of ranks.

    Args:
        placement: The node of each rank.
        between: The algorithm for the leaders; of exchanges only.
    """
    members_by_node = {node: ranks_on(placement, node) for node in sorted(set(placement))}
    leaders = sorted(members[0] for members in members_by_node.values())

    def algorithm(rank: int, size: int, length: int) -> Schedule:
        members = members_by_node[placement[rank]]
        if len(leaders) == 1:
            yield Shared("all_reduce", 0, length, members)
            return
        if len(members) > 1:
            yield Shared("reduce", 0, length, members)
        if rank == members[0]:
            yield from _renumber(between(leaders.index(rank), len(leaders), length), leaders)
        if len(members) > 1:
            yield Shared("broadcast", 0, length, members)

    return algorithm


HIERARCHICAL = AllReduce(hierarchical, shared_memory=True)


@cache
def fixed_order(placement: Placement) -> Algorithm | None:
    """The form whose sums run along one binary tree over all ranks.

    Returns:
        None where the placement does not allow it: it needs nodes of equally many consecutive
        ranks, a power of two.
    """
    size = len(placement) // (max(placement) + 1)
    even = all(node == rank // size for rank, node in enumerate(placement)) if size else False
    return hierarchical(placement, rabenseifner) if even and size & (size - 1) == 0 else None


def _renumber(schedule: Schedule, ranks: Sequence[int]) -> Schedule:
    """The rounds of a schedule among some of the ranks, with the numbers of these."""
    for step in schedule:
        if not isinstance(step, Exchange):
            raise TypeError("only exchanges can be done by some of the ranks")
        yield step._replace(dest=ranks[step.dest], source=ranks[step.source])
