"""How the ranks combine their work."""

from mpidl.sync.asynchronous.gossip import AsyncGossip
from mpidl.sync.asynchronous.hogwild import Hogwild
from mpidl.sync.asynchronous.one_sided_server import OneSidedParameterServer
from mpidl.sync.asynchronous.parameter_server import ParameterServer, check_servers
from mpidl.sync.asynchronous.strategy import (
    AsynchronousStrategy,
    check_host_memory,
    mean_and_largest,
)
from mpidl.sync.strategy import StepScalars, Strategy
from mpidl.sync.synchronous.allreduce import AllReduce
from mpidl.sync.synchronous.averaging import ParameterAveraging
from mpidl.sync.synchronous.gossip import Gossip
from mpidl.sync.synchronous.local_sgd import LocalSGD
from mpidl.sync.synchronous.zero import Zero
from mpidl.sync.topology import Graph, check_graph

__all__ = [
    "AllReduce",
    "AsyncGossip",
    "AsynchronousStrategy",
    "Gossip",
    "Graph",
    "Hogwild",
    "LocalSGD",
    "OneSidedParameterServer",
    "ParameterAveraging",
    "ParameterServer",
    "StepScalars",
    "Strategy",
    "Zero",
    "check_graph",
    "check_host_memory",
    "check_servers",
    "mean_and_largest",
]
