"""Puts a model together from a configuration, or from what a checkpoint says of it."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes

from mpidl.backend import Ops
from mpidl.comm.context import Context
from mpidl.config.schema import ModelConfig, OptimConfig
from mpidl.config.sync import Positive, Share, SyncConfig
from mpidl.errors import ConfigError, nearest
from mpidl.models import MODELS, build_layers
from mpidl.nn import FlatParameters, Model
from mpidl.optim import LAMB, LARS, SGD, Adam, Optimizer, Parameters
from mpidl.options import check_value
from mpidl.sync import (
    AllReduce,
    AsyncGossip,
    Gossip,
    Graph,
    Hogwild,
    LocalSGD,
    OneSidedParameterServer,
    ParameterServer,
    Strategy,
    Zero,
    check_graph,
    check_host_memory,
    check_servers,
)
from mpidl.train.accumulation import tree_fits
from mpidl.train.inputs import InputSpec


def build_model(
    config: ModelConfig, spec: InputSpec, ops: Ops, precision: str = "float32"
) -> Model:
    """The model for inputs of `spec`, with zero parameters. Raises ConfigError for one that is no classifier."""
    model = make_model(config, spec.shape, spec.classes, ops, precision)
    if model.output_shape != (spec.classes,):
        raise ConfigError(
            f"{config.name!r} gives numbers of shape {model.output_shape} for a sample, but 'mpidl train' trains classifiers, "
            f"which give one for each of the {spec.classes} classes",
            where="model",
            remedy="train texts and fields through the API (docs/models.md), or choose another model or other options",
        )
    return model


def make_model(
    config: ModelConfig, shape: tuple[int, ...], classes: int, ops: Ops, precision: str = "float32"
) -> Model:
    """The model with zero parameters that computes in `precision`. Raises ConfigError for an unknown model or option."""
    _check_options(config)
    try:
        layers = build_layers(config.name, shape, classes, config.options)
        return Model(layers, shape, ops, compute_dtype=getattr(ml_dtypes, precision, precision))
    except (TypeError, ValueError, OverflowError, MemoryError) as error:
        raise ConfigError(
            f"cannot build {config.name!r}: {error}",
            where="model.options",
            remedy="check the values",
        ) from error


# what options of a model may be: every size is a count, every number a share (of activations that are dropped)
_OPTIONS: dict[Any, Any] = {int: Positive, float: Share, Sequence[int]: tuple[Positive, ...]}


def _check_options(config: ModelConfig) -> None:
    """ConfigError for an option that the model does not have, or cannot have."""
    if config.name not in MODELS:
        return  # as build_layers says
    function = MODELS[config.name]
    known = [
        name
        for name, p in inspect.signature(function).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    ] + ["size"]
    types = typing.get_type_hints(getattr(function, "func", function)) | {"size": str}
    for name, value in config.options.items():
        if name not in known:
            what = f"model {config.name!r} has no option {name!r}"
            raise ConfigError(what, where="model.options", remedy=nearest(name, known))
        check_value(
            f"model.options.{name}", value, _OPTIONS.get(types[name], types[name]), "model.options"
        )


def make_optimizer(config: OptimConfig, parameters: Parameters, ops: Ops) -> Optimizer:
    """The optimizer that the configuration asks for, with fresh state."""
    momentum: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.nesterov}
    moments: dict[str, Any] = {"beta1": config.beta1, "beta2": config.beta2, "eps": config.eps}
    decay = config.weight_decay
    if config.name == "lars":
        return LARS(parameters, ops, weight_decay=decay, trust=config.trust, **momentum)
    if config.name == "lamb":
        return LAMB(parameters, ops, weight_decay=decay, **moments)
    if config.name in ("adam", "adamw"):
        return Adam(
            parameters, ops, weight_decay=decay, decoupled=config.name == "adamw", **moments
        )
    return SGD(parameters, ops, weight_decay=decay, **momentum)


@dataclass(frozen=True)
class RunInfo:
    """What strategies need to know of a run. steps: of an epoch; micro_batches: of a step over all ranks."""

    steps: int = 1
    micro_batches: int = 1
    seed: int = 0


def make_strategy(
    sync: SyncConfig, parameters: FlatParameters, context: Context, run: RunInfo
) -> Strategy:
    """How the ranks keep together, by the configuration. Collective."""
    return _MAKERS[sync.strategy](sync, parameters, context, run)


def _all_reduce(
    sync: SyncConfig, parameters: FlatParameters, context: Context, run: RunInfo
) -> Strategy:
    return AllReduce(
        parameters,
        context,
        algorithm=sync.algorithm,
        exact=tree_fits(run.micro_batches, context.size),
        overlap=sync.overlap,
        bucket_bytes=int(sync.bucket_mib * (1 << 20)),
        tune_buckets=sync.tune_buckets,
        compression=make_compression(sync, run.seed),
        guard=sync.guard,
        noise_scale=sync.noise_scale,
    )


def _zero(sync: SyncConfig, parameters: FlatParameters, context: Context, run: RunInfo) -> Strategy:
    own = run.micro_batches // context.size if run.micro_batches % context.size == 0 else 1
    nbytes = int(sync.bucket_mib * (1 << 20))
    return Zero(parameters, context, stage=sync.zero.stage, bucket_bytes=nbytes, micro_batches=own)


def _local_sgd(
    sync: SyncConfig, parameters: FlatParameters, context: Context, run: RunInfo
) -> Strategy:
    local = sync.local_sgd
    slow = {"slow_momentum": local.slow_momentum, "slow_rate": local.slow_rate}
    return LocalSGD(
        parameters,
        context,
        steps=local.steps,
        start_step=int(local.start_epoch * run.steps),
        **slow,
    )


def _gossip(
    sync: SyncConfig, parameters: FlatParameters, context: Context, run: RunInfo
) -> Strategy:
    gossip = sync.gossip
    graph = Graph(
        gossip.graph, context.size, run.seed, gossip.edges, directed=gossip.mode == "push_sum"
    )
    if gossip.mode == "async":
        return AsyncGossip(parameters, context, graph, period=gossip.period)
    return Gossip(
        parameters, context, graph, period=gossip.period, push_sum=gossip.mode == "push_sum"
    )


def _hogwild(
    sync: SyncConfig, parameters: FlatParameters, context: Context, run: RunInfo
) -> Strategy:
    return Hogwild(
        parameters, context, sparse=sync.hogwild.sparse, average_every=sync.hogwild.average_every
    )


def _parameter_server(
    sync: SyncConfig, parameters: FlatParameters, context: Context, run: RunInfo
) -> Strategy:
    server = sync.parameter_server
    staleness = None if server.staleness == "unbounded" else int(server.staleness)
    if server.transport == "rma":
        return OneSidedParameterServer(
            parameters, context, servers=server.servers, staleness=staleness
        )
    delay = server.delay_compensation
    return ParameterServer(
        parameters, context, servers=server.servers, staleness=staleness, delay_compensation=delay
    )


_MAKERS: dict[str, Callable[[SyncConfig, FlatParameters, Context, RunInfo], Strategy]] = {
    "allreduce": _all_reduce,
    "zero": _zero,
    "local_sgd": _local_sgd,
    "gossip": _gossip,
    "hogwild": _hogwild,
    "parameter_server": _parameter_server,
}


def workers(sync: SyncConfig, context: Context) -> int:
    """How many ranks train: the first ones."""
    return context.size - (
        sync.parameter_server.servers if sync.strategy == "parameter_server" else 0
    )


def check_strategy(sync: SyncConfig, context: Context, model: Model, optimizer: str) -> None:
    """ConfigError for a strategy that cannot work with so many ranks, on this device, or with this model or optimizer."""
    if sync.strategy == "gossip":
        check_graph(sync.gossip.graph, sync.gossip.edges, context.size)
    server = sync.parameter_server
    if sync.strategy == "parameter_server":
        check_servers(server.servers, context.size)
        if server.servers > 1 and optimizer in ("lars", "lamb") and server.transport == "messages":
            raise ConfigError(
                f"{optimizer} looks at whole tensors, but several servers hold parts of them",
                where="sync.parameter_server.servers",
                remedy='set servers = 1, transport = "rma", or another optimizer',
            )
    one_sided = sync.independent and (
        sync.strategy != "parameter_server" or server.transport == "rma"
    )
    if one_sided:
        check_host_memory(model.ops, sync.strategy)
    if (
        model.needs_collective
        and context.size > 1
        and sync.strategy != "allreduce"
        and not _lockstep(sync)
    ):
        raise ConfigError(
            f"the model has batch norm over all ranks, which must then be in step; with {sync.strategy} they are not",
            where="model.options",
            remedy="use a model without synchronized batch norm, or allreduce, zero, local_sgd, or gossip in mode sync",
        )


def _lockstep(sync: SyncConfig) -> bool:
    """Whether ranks do equally many passes, one by one."""
    return not sync.independent and not (sync.strategy == "zero" and sync.zero.stage == 3)


def make_compression(sync: SyncConfig, seed: int) -> Any:
    """The compressor that the configuration asks for, with error feedback if wanted; None for none."""
    if sync.compression == "none":
        return None
    from mpidl.compression import create

    every: dict[str, dict[str, Any]] = {
        "topk": {"ratio": sync.topk_ratio},
        "powersgd": {"rank": sync.powersgd_rank},
    }
    return create(
        sync.compression,
        seed=seed,
        error_feedback=sync.error_feedback,
        **every.get(sync.compression, {}),
    )
