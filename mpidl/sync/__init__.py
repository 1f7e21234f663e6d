"""How the ranks combine their work: strategies, by name."""

from mpidl.registry import Registry
from mpidl.sync.asynchronous.gossip import AsyncGossip
from mpidl.sync.asynchronous.hogwild import Hogwild
from mpidl.sync.asynchronous.parameter_server import OneSidedParameterServer, ParameterServer
from mpidl.sync.asynchronous.strategy import AsynchronousStrategy, mean_and_largest
from mpidl.sync.strategy import RunInfo, StepScalars, Strategy
from mpidl.sync.synchronous.allreduce import AllReduce
from mpidl.sync.synchronous.averaging import ParameterAveraging
from mpidl.sync.synchronous.gossip import Gossip
from mpidl.sync.synchronous.local_sgd import LocalSGD
from mpidl.sync.synchronous.robust import Robust
from mpidl.sync.synchronous.strategy import SynchronousStrategy
from mpidl.sync.synchronous.zero import Zero
from mpidl.sync.topology import Graph

STRATEGIES: Registry[type[Strategy]] = Registry(
    "strategy",
    "sync.strategy",
    {
        "allreduce": "mpidl.sync.synchronous.allreduce:AllReduce",
        "zero": "mpidl.sync.synchronous.zero:Zero",
        "robust": "mpidl.sync.synchronous.robust:Robust",
        "local_sgd": "mpidl.sync.synchronous.local_sgd:LocalSGD",
        "gossip": "mpidl.sync.synchronous.gossip:Gossip",
        "async_gossip": "mpidl.sync.asynchronous.gossip:AsyncGossip",
        "hogwild": "mpidl.sync.asynchronous.hogwild:Hogwild",
        "parameter_server": "mpidl.sync.asynchronous.parameter_server:ParameterServer",
        "one_sided_server": "mpidl.sync.asynchronous.parameter_server:OneSidedParameterServer",
    },
)

__all__ = [
    "STRATEGIES",
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
    "Robust",
    "RunInfo",
    "StepScalars",
    "Strategy",
    "SynchronousStrategy",
    "Zero",
    "mean_and_largest",
]
