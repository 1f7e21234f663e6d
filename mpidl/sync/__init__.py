"""How the ranks combine their work."""

from mpidl.sync.allreduce import AllReduce
from mpidl.sync.async_gossip import AsyncGossip
from mpidl.sync.gossip import Gossip
from mpidl.sync.hogwild import Hogwild
from mpidl.sync.independent import Independent, check_host_memory, mean_and_largest
from mpidl.sync.local_sgd import LocalSGD
from mpidl.sync.parameter_server import ParameterServer, check_servers
from mpidl.sync.remote_server import RemoteServer
from mpidl.sync.replicas import Replicas
from mpidl.sync.strategy import StepScalars, Strategy
from mpidl.sync.topology import Graph, check_graph
from mpidl.sync.zero import Zero

__all__ = [
    "AllReduce",
    "AsyncGossip",
    "Gossip",
    "Graph",
    "Hogwild",
    "Independent",
    "LocalSGD",
    "ParameterServer",
    "RemoteServer",
    "Replicas",
    "StepScalars",
    "Strategy",
    "Zero",
    "check_graph",
    "check_host_memory",
    "check_servers",
    "mean_and_largest",
]
