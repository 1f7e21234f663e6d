"""What both kinds of parameter servers share: which ranks serve, and which parameters they hold."""

from __future__ import annotations

from typing import Any, Literal

from mpidl.collectives.schedule import block_range
from mpidl.comm.context import Context
from mpidl.errors import ConfigError
from mpidl.nn import FlatParameters
from mpidl.options import NotNegative, Positive, Section
from mpidl.sync.asynchronous.strategy import AsynchronousStrategy
from mpidl.sync.strategy import RunInfo


class ServerOptions(Section, frozen=True):
    """Options of parameter servers.

    Attributes:
        servers: How many ranks only hold parameters: the last ones.
        staleness: Steps that a worker may be ahead of the slowest.
    """

    servers: Positive = 1
    staleness: NotNegative | Literal["unbounded"] = "unbounded"

    @property
    def bound(self) -> int | None:
        """The staleness; None: any number of steps."""
        return None if isinstance(self.staleness, str) else self.staleness


class ServerStrategy(AsynchronousStrategy):
    """The flat buffer is divided among the last ranks, the servers.

    Attributes:
        serves: Whether this rank is a server.
        ranges: Elements [start, stop) of the flat buffer that each server holds.
        own: Of this rank; empty on a worker.
    """

    options: ServerOptions

    @classmethod
    def training_ranks(cls, options: Any, ranks: int) -> int:
        """All but the servers."""
        return int(ranks - options.servers)

    @classmethod
    def check(cls, options: Any, run: RunInfo) -> None:
        """Also refuse servers that leave no worker."""
        super().check(options, run)
        if run.ranks and options.servers >= run.ranks:
            remedy = f"set servers to at most {run.ranks - 1}"
            raise ConfigError(
                f"{options.servers} parameter server(s) among {run.ranks} rank(s) leave no worker",
                where="sync.servers",
                remedy=remedy if run.ranks > 1 else "start 2 ranks or more",
            )

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        options: Section | None = None,
        run: RunInfo | None = None,
    ) -> None:
        super().__init__(parameters, context, options, run)
        servers = self.options.servers
        self.ranges = [block_range(index, servers, parameters.length) for index in range(servers)]
        self.serves = context.rank >= self.workers
        self.own = self.ranges[context.rank - self.workers] if self.serves else (0, 0)
