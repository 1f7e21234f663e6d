"""Algorithms: generators of rounds, and the registries of those that can be chosen by name.

A new all-reduce is a file with its generator and an `AllReduce`, and a line here.
"""

from mpidl.collectives.schedule import Algorithm, AllReduce
from mpidl.registry import Registry

ALL_REDUCE: Registry[AllReduce] = Registry(
    "all-reduce algorithm",
    "sync.algorithm",
    {
        "ring": "mpidl.collectives.algorithms.ring:RING",
        "rabenseifner": "mpidl.collectives.algorithms.rabenseifner:RABENSEIFNER",
        "doubling": "mpidl.collectives.algorithms.recursive_doubling:RECURSIVE_DOUBLING",
        "tree": "mpidl.collectives.algorithms.tree:TREE",
        "direct": "mpidl.collectives.algorithms.pairwise:DIRECT",
        "native": "mpidl.collectives.algorithms.native:NATIVE",
        "hierarchical": "mpidl.collectives.algorithms.hierarchical:HIERARCHICAL",
    },
)

ALL_GATHER: Registry[Algorithm] = Registry(
    "all-gather algorithm",
    "algorithm",
    {
        "ring": "mpidl.collectives.algorithms.ring:all_gather",
        "bruck": "mpidl.collectives.algorithms.pairwise:bruck",
    },
)
