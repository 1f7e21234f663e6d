"""Who averages with whom in gossip, in which step and with which weights; and how fast that makes
replicas equal.

Weights of what a rank sends away and keeps add up to 1 (columns of the mixing matrix). In all
graphs but the directed random one those of what it receives do too, so the mean over the ranks
stays what it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpidl.errors import ConfigError
from mpidl.options import Place, Positive, Section

Edges = Sequence[Sequence[int]]
Columns = tuple[dict[int, float], ...]  # receiver -> weight, for each rank
KEPT = 16  # steps whose weights are kept; periods are no longer, up to 65,536 ranks


@dataclass(frozen=True)
class Mixing:
    """One rank's part in one step.

    Attributes:
        own: Weight of what it keeps.
        sends: (dest, weight) of what it sends.
        receives: Sources, ascending.
    """

    own: float
    sends: tuple[tuple[int, float], ...]
    receives: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """A communication graph over the ranks.

    "exponential" (one peer a step, 1, 2, 4, ... ranks away: Assran et al., 2019) and "random" (a
    new matching in each step) change with the step; the others are the same in every step.

    Attributes:
        kind: "ring", "torus", "exponential", "random", "complete" or "custom".
        size: Ranks.
        seed: Of random graphs.
        edges: Undirected, of "custom".
        directed: Whether "random" lets each rank push to one other (SGP).
    """

    kind: str
    size: int
    seed: int = 0
    edges: tuple[tuple[int, int], ...] = ()
    directed: bool = False

    @property
    def period(self) -> int:
        """Steps after which the graph repeats; 0 for random ones."""
        if self.kind == "random":
            return 0
        return (
            max(1, math.ceil(math.log2(self.size)))
            if self.kind == "exponential" and self.size > 1
            else 1
        )

    def mixing(self, rank: int, step: int) -> Mixing:
        """What `rank` does in `step`."""
        columns = self._columns(step)
        own = columns[rank]
        sends = tuple((other, weight) for other, weight in sorted(own.items()) if other != rank)
        receives = tuple(
            other for other, weights in enumerate(columns) if weights.get(rank) and other != rank
        )
        return Mixing(own.get(rank, 0.0), sends, receives)

    def _columns(self, step: int) -> Columns:
        """What becomes of each rank's value in a step."""
        return _columns(self, step % self.period if self.period else step)

    def matrix(self, step: int) -> NDArray[np.float64]:
        """The mixing matrix (size, size) of a step: new = matrix @ old."""
        result = np.zeros((self.size, self.size))
        for rank, weights in enumerate(self._columns(step)):
            for other, weight in weights.items():
                result[other, rank] = weight
        return result

    def spectral_gap(self) -> float:
        """How fast replicas become equal: 1 - rate.

        The distance from consensus is multiplied by at most `rate` in a step, on average over a
        period. For random graphs the rate is that of the mean square.
        """
        if self.size == 1:
            return 1.0
        mean = np.full((self.size, self.size), 1 / self.size)
        if not self.period:
            rate = math.sqrt(self._mean_square())
            return 1.0 - rate
        product = np.eye(self.size)
        for step in range(self.period):
            product = self.matrix(step) @ product
        rate = float(np.linalg.norm(product - mean, 2)) ** (1 / self.period)
        return 1.0 - min(rate, 1.0) if rate > 1e-9 else 1.0

    def _mean_square(self) -> float:
        """Of random graphs: what is left of the squared distance after a step, on average.

        By symmetry it is the same in all directions.
        """
        others = self.size - 1
        if self.directed:  # two columns meet where one pushes to the other, or both to a third
            return 0.5 - 1 / (2 * others) - (others - 1) / (4 * others**2)
        matched = 1.0 if self.size % 2 == 0 else others / self.size
        return 1 - matched / 2 - matched / (2 * others)


@lru_cache(KEPT)
def _columns(graph: Graph, step: int) -> Columns:
    """What becomes of the ranks' values in a step, below the period for graphs that have one."""
    size = graph.size
    if size == 1:
        return ({0: 1.0},)
    if graph.kind == "complete":
        return (dict.fromkeys(range(size), 1 / size),) * size
    if graph.kind == "exponential":
        return tuple({rank: 0.5, (rank + (1 << step)) % size: 0.5} for rank in range(size))
    if graph.kind == "random":
        return _directed(graph, step) if graph.directed else _matched(graph, step)
    found = _neighbors(graph)
    columns = []
    for rank, neighbors in enumerate(found):
        # Metropolis weights: symmetric whatever the degrees are
        weights = {other: 1 / (1 + max(len(neighbors), len(found[other]))) for other in neighbors}
        columns.append(weights | {rank: 1 - sum(weights.values())})
    return tuple(columns)


def _directed(graph: Graph, step: int) -> Columns:
    """Each rank pushes half of its value to another that it draws."""
    drawn = np.random.default_rng([graph.seed, step]).integers(1, graph.size, graph.size)
    return tuple({rank: 0.5, int((rank + hop) % graph.size): 0.5} for rank, hop in enumerate(drawn))


def _matched(graph: Graph, step: int) -> Columns:
    """Disjoint pairs; with an odd number of ranks one of them rests."""
    order = np.random.default_rng([graph.seed, step]).permutation(graph.size).tolist()
    columns: list[dict[int, float]] = [{rank: 1.0} for rank in range(graph.size)]
    for one, other in zip(order[::2], order[1::2], strict=False):
        columns[one], columns[other] = {one: 0.5, other: 0.5}, {other: 0.5, one: 0.5}
    return tuple(columns)


@cache
def _neighbors(graph: Graph) -> tuple[frozenset[int], ...]:
    size = graph.size
    found: list[set[int]] = [set() for _ in range(size)]
    pairs: list[tuple[int, int]] = list(graph.edges)
    if graph.kind == "ring":
        pairs = [(rank, (rank + 1) % size) for rank in range(size)]
    if graph.kind == "torus":
        rows = next(r for r in range(math.isqrt(size), 0, -1) if size % r == 0)
        cols = size // rows
        pairs = [
            (r * cols + c, r * cols + (c + 1) % cols) for r in range(rows) for c in range(cols)
        ]
        pairs += [
            (r * cols + c, (r + 1) % rows * cols + c) for r in range(rows) for c in range(cols)
        ]
    for a, b in pairs:
        if a != b:
            found[a].add(b)
            found[b].add(a)
    return tuple(frozenset(others) for others in found)


class GraphOptions(Section, frozen=True):
    """Options of strategies that exchange along a graph.

    Attributes:
        graph: Its kind.
        edges: Pairs of ranks, of a "custom" graph.
        period: Steps between exchanges.
    """

    graph: Literal["ring", "torus", "exponential", "random", "complete", "custom"] = "exponential"
    edges: tuple[tuple[int, int], ...] = ()
    period: Positive = 1

    def build(self, ranks: int, seed: int, *, directed: bool = False) -> Graph:
        """The graph among `ranks` ranks."""
        return Graph(self.graph, ranks, seed, self.edges, directed=directed)

    def check(self, place: Place) -> None:
        """Refuse edges that are none."""
        self.check_ranks(0)

    def check_ranks(self, ranks: int) -> None:
        """Refuse edges that are none among `ranks` ranks, or do not connect them; 0: any number."""
        check_graph(self.graph, self.edges, ranks or None)


def check_graph(kind: str, edges: Edges, size: int | None = None) -> None:
    """Check the edges of a custom graph.

    Args:
        kind: Of the graph.
        edges: Pairs of ranks.
        size: Number of ranks; None: not known yet.

    Raises:
        ConfigError: Edges are given for a graph that has its own, or do not connect all ranks.
    """
    if kind != "custom":
        if edges:
            raise ConfigError(
                "edges are given for a graph that has its own",
                where="sync.edges",
                remedy='set graph = "custom"',
            )
        return
    if not edges or any(len(edge) != 2 or min(edge) < 0 or edge[0] == edge[1] for edge in edges):
        raise ConfigError(
            "a custom graph needs edges between two different ranks",
            where="sync.edges",
            remedy="write [[0, 1], [1, 2]]",
        )
    ranks = max(map(max, edges)) + 1
    if size is not None and ranks > size:
        raise ConfigError(
            f"edges name rank {ranks - 1}, but there are {size} ranks",
            where="sync.edges",
            remedy=f"use ranks below {size}",
        )
    _check_connected(Graph("custom", size or ranks, edges=tuple((a, b) for a, b in edges)))


def _check_connected(graph: Graph) -> None:
    reached, border = {0}, [0]
    neighbors = _neighbors(graph)
    while border:
        fresh = neighbors[border.pop()] - reached
        reached |= fresh
        border += fresh
    if len(reached) < graph.size:
        alone = min(set(range(graph.size)) - reached)
        raise ConfigError(
            f"the graph is not connected: no path from rank 0 to rank {alone}, so their models "
            "would never agree",
            where="sync.edges",
            remedy=f"add an edge to rank {alone}",
        )
