"""The [sync] section: which strategy, and what it is told; combinations that cannot work are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mpidl.errors import ConfigError, nearest
from mpidl.options import LARGEST
from mpidl.sync.topology import check_graph

Positive = Annotated[int, Meta(ge=1, le=LARGEST)]
NotNegative = Annotated[int, Meta(ge=0, le=LARGEST)]
Rate = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, lt=1)]
STRATEGIES = ("allreduce", "zero", "local_sgd", "gossip", "hogwild", "parameter_server")
Name = Literal["allreduce", "zero", "local_sgd", "gossip", "hogwild", "parameter_server"]
INDEPENDENT = ("hogwild", "parameter_server")  # and gossip with mode = "async"


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the sections: unknown keys are errors."""


class ZeroConfig(Section, frozen=True):
    """stage: 1 partitions optimizer state, 2 gradients too, 3 parameters too (see mpidl.sync.synchronous.zero)."""

    stage: Literal[1, 2, 3] = 2


class LocalSGDConfig(Section, frozen=True):
    """steps: between averages; start_epoch: before it gradients are averaged; slow_momentum, slow_rate: of SlowMo."""

    steps: Positive = 8
    start_epoch: Annotated[float, Meta(ge=0, le=LARGEST)] = 0.0
    slow_momentum: Share = 0.0
    slow_rate: Rate = 1.0


class GossipConfig(Section, frozen=True):
    """graph, edges (of "custom"): see mpidl.sync.topology; mode: everybody in every step, directed with push-sum weights, or in
    pairs whenever a rank is ready; period: steps between exchanges.
    """

    graph: Literal["ring", "torus", "exponential", "random", "complete", "custom"] = "exponential"
    mode: Literal["sync", "push_sum", "async"] = "sync"
    period: Positive = 1
    edges: tuple[tuple[int, int], ...] = ()


class HogwildConfig(Section, frozen=True):
    """sparse: leave alone what has no gradient (plain SGD only); average_every: steps between averages of the nodes."""

    sparse: bool = False
    average_every: Positive = 16


class ParameterServerConfig(Section, frozen=True):
    """servers: ranks that only hold parameters, the last ones; staleness: steps that a worker may be ahead of the slowest: 0
    synchronous, "unbounded" asynchronous; delay_compensation: of gradients that come late (Zheng et al., 2017); transport: see
    mpidl.sync.asynchronous.parameter_server.
    """

    servers: Positive = 1
    staleness: NotNegative | Literal["unbounded"] = "unbounded"
    delay_compensation: Annotated[float, Meta(ge=0)] = 0.0
    transport: Literal["messages", "rma"] = "messages"


class SyncConfig(Section, frozen=True):
    """How the work of the ranks is combined; each strategy has a section of its own.

    algorithm "auto": one that makes results independent of the number of ranks where there is one (see train.micro_batches),
    else by size and placement. overlap, bucket_mib (0: 4 MiB), tune_buckets: see mpidl.sync.synchronous.allreduce. compression: see
    mpidl.compression. guard: compare what the ranks do before each exchange. watchdog: seconds until ranks that wait for
    others give up (0: never). noise_scale: measure the gradient noise, to suggest a batch size.
    """

    strategy: Name = "allreduce"
    algorithm: Literal[
        "auto", "ring", "rabenseifner", "doubling", "tree", "direct", "hierarchical", "native"
    ] = "auto"
    overlap: Literal["auto", "thread", "layers", "off"] = "auto"
    bucket_mib: Annotated[float, Meta(ge=0, le=LARGEST)] = 0.0
    tune_buckets: bool = False
    compression: Literal["none", "fp16", "bf16", "int8", "sign", "topk", "powersgd"] = "none"
    error_feedback: bool = True
    topk_ratio: Annotated[float, Meta(gt=0, le=1)] = 0.01
    powersgd_rank: Positive = 4
    guard: Literal["auto", "on", "off"] = "auto"
    watchdog: Annotated[float, Meta(ge=0)] = 300.0
    noise_scale: bool = False
    zero: ZeroConfig = ZeroConfig()
    local_sgd: LocalSGDConfig = LocalSGDConfig()
    gossip: GossipConfig = GossipConfig()
    hogwild: HogwildConfig = HogwildConfig()
    parameter_server: ParameterServerConfig = ParameterServerConfig()

    @property
    def independent(self) -> bool:
        """Whether every rank goes its own pace."""
        return self.strategy in INDEPENDENT or (
            self.strategy == "gossip" and self.gossip.mode == "async"
        )


def name_check(tree: Any, where: str) -> None:
    """ConfigError for a strategy that does not exist, or several at once. tree: the section as it was written."""
    name = tree.get("strategy", "allreduce") if isinstance(tree, dict) else "allreduce"
    if name in STRATEGIES:
        return
    several = isinstance(name, str) and any(
        part.strip() in STRATEGIES for part in name.replace("+", ",").split(",")
    )
    raise ConfigError(
        f"sync.strategy is {name!r}: "
        + ("a run has one strategy" if several else "there is no such strategy"),
        where=where,
        remedy=nearest(str(name), STRATEGIES),
    )


def check_sync(tree: dict[str, Any], sync: SyncConfig, where: str) -> None:
    """ConfigError for what cannot work together; tree: the section as it was written."""
    for name in STRATEGIES:
        if name in tree and name != sync.strategy:
            raise ConfigError(
                f"sync.{name} is set, but sync.strategy is {sync.strategy!r}: one run has one strategy",
                where=where,
                remedy=f'set strategy = "{name}", or remove the section',
            )
    if sync.strategy != "allreduce":
        for name in ("compression", "tune_buckets", "noise_scale"):
            if getattr(sync, name) not in (False, "none"):
                raise ConfigError(
                    f"sync.{name} works with the all-reduce of gradients only, not with {sync.strategy!r}",
                    where=where,
                    remedy=f'set strategy = "allreduce", or remove sync.{name}',
                )
    server = sync.parameter_server
    if server.staleness == 0 and server.transport == "rma":
        raise ConfigError(
            "staleness 0 needs a server that waits for all gradients; with transport rma nobody waits there",
            where=where,
            remedy='set transport = "messages", or a staleness of 1 or more',
        )
    if server.transport == "rma" and server.delay_compensation:
        raise ConfigError(
            "delay compensation is done by the server; with transport rma it does nothing",
            where=where,
            remedy='set transport = "messages", or delay_compensation = 0',
        )
    check_graph(sync.gossip.graph, sync.gossip.edges)
    if sync.gossip.mode == "async" and sync.gossip.graph not in (
        "random",
        "complete",
        "exponential",
    ):
        raise ConfigError(
            f"asynchronous gossip draws a partner in each exchange; the graph {sync.gossip.graph!r} is for mode sync",
            where=where,
            remedy='set graph = "random"',
        )
