"""Puts a model together from a configuration, or from what a checkpoint says of it."""

from __future__ import annotations

import inspect
from typing import Any

import ml_dtypes

from mpidl.backend import Ops
from mpidl.comm.context import Context
from mpidl.errors import ConfigError
from mpidl.models import MODELS, layers_of
from mpidl.nn import FlatParameters, Model
from mpidl.optim import LAMB, LARS, SGD, Adam, Optimizer, Parameters
from mpidl.sync import (
    AllReduce,
    AsyncGossip,
    Gossip,
    Graph,
    Hogwild,
    LocalSGD,
    ParameterServer,
    Strategy,
    Zero,
    check_graph,
    check_servers,
)
from mpidl.train.accumulate import tree_fits
from mpidl.train.config import Config, ModelConfig, OptimConfig
from mpidl.train.inputs import InputSpec
from mpidl.train.sync_config import SyncConfig


def build_model(config: ModelConfig, spec: InputSpec, ops: Ops, precision: str = "float32") -> Model:
    """The model for inputs of `spec`, with zero parameters."""
    return make_model(config, spec.shape, spec.classes, ops, precision)


def make_model(config: ModelConfig, shape: tuple[int, ...], classes: int, ops: Ops, precision: str = "float32") -> Model:
    """The model with zero parameters that computes in `precision`. Raises ConfigError for an unknown model or option."""
    if config.name in MODELS:
        signature = inspect.signature(MODELS[config.name]).parameters
        known = [name for name, p in signature.items() if p.kind is p.KEYWORD_ONLY] + ["size"]
        unknown = sorted(set(config.options) - set(known))
        if unknown:
            raise ConfigError(
                f"model {config.name!r} has no option {unknown[0]!r}",
                where="model.options",
                remedy=f"it knows {', '.join(known)}",
            )
    try:
        layers = layers_of(config.name, shape, classes, config.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cannot build {config.name!r}: {error}", where="model.options", remedy="check the values") from error
    return Model(layers, shape, ops, compute_dtype=getattr(ml_dtypes, precision, precision))


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
        return Adam(parameters, ops, weight_decay=decay, decoupled=config.name == "adamw", **moments)
    return SGD(parameters, ops, weight_decay=decay, **momentum)


def make_strategy(config: Config, parameters: FlatParameters, context: Context, steps: int) -> Strategy:
    """How the ranks keep together, by the configuration; steps: of an epoch. Collective."""
    sync, seed = config.sync, config.train.seed
    if sync.strategy == "zero":
        own = config.train.micro_batches // context.size if config.train.micro_batches % context.size == 0 else 1
        nbytes = int(sync.bucket_mib * (1 << 20))
        return Zero(parameters, context, stage=sync.zero.stage, bucket_bytes=nbytes, micro_batches=own)
    if sync.strategy == "local_sgd":
        local = sync.local_sgd
        slow = {"slow_momentum": local.slow_momentum, "slow_rate": local.slow_rate}
        return LocalSGD(parameters, context, steps=local.steps, start=int(local.start_epoch * steps), **slow)
    if sync.strategy == "gossip":
        gossip = sync.gossip
        check_graph(gossip.graph, gossip.edges, context.size)
        graph = Graph(gossip.graph, context.size, seed, gossip.edges, directed=gossip.mode == "push_sum")
        if gossip.mode == "async":
            return AsyncGossip(parameters, context, graph, period=gossip.period)
        return Gossip(parameters, context, graph, period=gossip.period, push_sum=gossip.mode == "push_sum")
    if sync.strategy == "hogwild":
        return Hogwild(parameters, context, sparse=sync.hogwild.sparse, average_every=sync.hogwild.average_every)
    if sync.strategy == "parameter_server":
        return _parameter_server(config, parameters, context)
    return AllReduce(
        parameters,
        context,
        algorithm=sync.algorithm,
        exact=tree_fits(config.train.micro_batches, context.size),
        overlap=sync.overlap,
        bucket_bytes=int(sync.bucket_mib * (1 << 20)),
        tune_buckets=sync.tune_buckets,
        compression=make_compression(sync, seed),
        guard=sync.guard,
    )


def _parameter_server(config: Config, parameters: FlatParameters, context: Context) -> Strategy:
    server = config.sync.parameter_server
    staleness = None if server.staleness == "unbounded" else int(server.staleness)
    if server.servers > 1 and config.optim.name in ("lars", "lamb"):
        raise ConfigError(
            f"{config.optim.name} looks at whole tensors, but several servers hold parts of them",
            where="sync.parameter_server.servers",
            remedy="set servers = 1, or another optimizer",
        )
    delay = server.delay_compensation
    return ParameterServer(parameters, context, servers=server.servers, staleness=staleness, delay_compensation=delay)


def workers(config: Config, context: Context) -> int:
    """How many ranks train: the first ones. ConfigError if there is none."""
    if config.sync.strategy != "parameter_server":
        return context.size
    check_servers(config.sync.parameter_server.servers, context.size)
    return context.size - config.sync.parameter_server.servers


def make_compression(sync: SyncConfig, seed: int) -> Any:
    """The compressor that the configuration asks for, with error feedback if wanted; None for none."""
    if sync.compression == "none":
        return None
    from mpidl.compression import create

    every: dict[str, dict[str, Any]] = {"topk": {"ratio": sync.topk_ratio}, "powersgd": {"rank": sync.powersgd_rank}}
    return create(sync.compression, seed=seed, error_feedback=sync.error_feedback, **every.get(sync.compression, {}))
