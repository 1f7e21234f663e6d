"""How the ranks combine their work."""

from mpidl.sync.allreduce import AllReduce
from mpidl.sync.gossip import Gossip
from mpidl.sync.local_sgd import LocalSGD
from mpidl.sync.replicas import Replicas
from mpidl.sync.strategy import StepScalars, Strategy
from mpidl.sync.topology import Graph, check_graph
from mpidl.sync.zero import Zero

__all__ = ["AllReduce", "Gossip", "Graph", "LocalSGD", "Replicas", "StepScalars", "Strategy", "Zero", "check_graph"]
