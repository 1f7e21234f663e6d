"""Metrics in the text format of Prometheus: Triton's names (nv_inference_*), and our own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from mpidl.serving.repository import Version
from mpidl.serving.server import Server
from mpidl.serving.stats import PARTS, Statistics

REASONS = {"UNAVAILABLE": "REJECTED", "INTERNAL": "BACKEND"}


def format_metrics(server: Server) -> str:
    """All metrics of a server."""
    return "\n".join([*_models(server), *_latencies(server), *_server(server), ""])


def _metric(name: str, kind: str, text: str, values: list[tuple[dict[str, str], Any]]) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, value in values:
        inside = ",".join(f'{key}="{label}"' for key, label in labels.items())
        lines.append(f"{name}{{{inside}}} {value}" if inside else f"{name} {value}")
    return "\n".join(lines)


def _models(server: Server) -> Iterator[str]:
    found = [
        ({"model": version.model, "version": version.number}, version)
        for version in server.repository.versions()
    ]
    counters: dict[str, tuple[str, Callable[[Statistics], int]]] = {
        "request_success": ("Number of successful inference requests", lambda s: s.success.count),
        "count": ("Number of inferences performed", lambda s: s.inferences),
        "exec_count": ("Number of model executions performed", lambda s: s.executions),
        "request_duration_us": (
            "Cumulative inference request duration in microseconds",
            lambda s: s.success.ns // 1000,
        ),
        "queue_duration_us": (
            "Cumulative inference queuing duration in microseconds",
            lambda s: s.queue.ns // 1000,
        ),
    }
    for name, (text, value) in counters.items():
        values = [(labels, value(version.stats)) for labels, version in found]
        yield _metric(f"nv_inference_{name}", "counter", text, values)
    for index, part in enumerate(PARTS):
        values = [(labels, v.stats.parts[index].ns // 1000) for labels, v in found]
        text = f"Cumulative {part.replace('_', ' ')} duration in microseconds"
        yield _metric(f"nv_inference_{part}_duration_us", "counter", text, values)
    failures = [
        (labels | {"reason": REASONS.get(code, "OTHER")}, count)
        for labels, version in found
        for code, count in version.stats.reasons.items()
    ]
    text = "Number of failed inference requests"
    yield _metric("nv_inference_request_failure", "counter", text, failures)
    waiting = [(labels, len(version.lane.batcher.queue)) for labels, version in found]
    text = "Instantaneous number of pending requests awaiting execution per-model"
    yield _metric("nv_inference_pending_request_count", "gauge", text, waiting)
    measured = [(labels, f"{v.lane.row_time * 1e-9:.9f}") for labels, v in found]
    text = "Seconds of computing one sample, lately"
    yield _metric("mpidl_sample_seconds", "gauge", text, measured)
    yield from _own(found)


def _own(found: list[tuple[dict[str, str], Version]]) -> Iterator[str]:
    """What Triton does not have."""
    cancelled = [(labels, version.stats.cancel) for labels, version in found]
    text = "Number of requests whose client went away"
    yield _metric("mpidl_requests_cancelled", "counter", text, cancelled)
    tokens = [(labels, v.stats.tokens) for labels, v in found if v.generation]
    yield _metric("mpidl_tokens_generated", "counter", "Tokens of texts", tokens)
    texts = [(labels, v.generation.count) for labels, v in found if v.generation]
    yield _metric("mpidl_texts", "gauge", "Texts that are being written", texts)


def _latencies(server: Server) -> Iterator[str]:
    versions = server.repository.versions()
    labels = [f'model="{v.model}",version="{v.number}"' for v in versions]
    name, text = "mpidl_request_duration_seconds", "Time of answered inference requests"
    yield _metric(name, "histogram", text, [])
    for version, own in zip(versions, labels, strict=True):
        yield from version.stats.latency.lines(name, own)
    name, text = "mpidl_first_token_seconds", "Time to the first token of a text"
    yield _metric(name, "histogram", text, [])
    for version, own in zip(versions, labels, strict=True):
        if version.generation:
            yield from version.stats.first_token.lines(name, own)


def _server(server: Server) -> Iterator[str]:
    workers = server.dispatcher.workers
    gauges = {
        "mpidl_ranks": ("Ranks that compute", sum(worker.alive for worker in workers)),
        "mpidl_ranks_lost": (
            "Ranks that were lost",
            sum(not worker.alive for worker in workers),
        ),
        "mpidl_messages_in_flight": (
            "Batches and calls that ranks have not answered",
            sum(len(worker.flying) for worker in workers),
        ),
        "mpidl_pending_bytes": ("Bytes of requests that are held", server.pending_bytes),
        "mpidl_draining": ("Whether the server is stopping", int(server.draining)),
        "mpidl_uptime_seconds": ("Age of the server", f"{time.time() - server.started:.3f}"),
    }
    up = [({"rank": str(worker.rank)}, int(worker.alive)) for worker in workers]
    yield _metric("mpidl_rank_up", "gauge", "Whether a rank is there", up)
    flying = [({"rank": str(worker.rank)}, len(worker.flying)) for worker in workers]
    text = "Batches and calls that a rank has not answered"
    yield _metric("mpidl_rank_messages_in_flight", "gauge", text, flying)
    for name, (text, value) in gauges.items():
        yield _metric(name, "gauge", text, [({}, value)])
