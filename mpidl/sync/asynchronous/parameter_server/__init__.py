"""Parameter servers: some ranks hold the parameters, the others compute gradients."""

from mpidl.sync.asynchronous.parameter_server.one_sided import OneSidedParameterServer
from mpidl.sync.asynchronous.parameter_server.strategy import ParameterServer

__all__ = ["OneSidedParameterServer", "ParameterServer"]
