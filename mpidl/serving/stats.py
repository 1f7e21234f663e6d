"""What a model has done, in Triton's fields, and how long it took."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from mpidl.serving.latency import Histogram


@dataclass
class Duration:
    """A number of events, and their nanoseconds together."""

    count: int = 0
    ns: int = 0

    def add(self, nanoseconds: int, count: int = 1) -> None:
        """Add events."""
        self.count += count
        self.ns += nanoseconds

    def to_dict(self) -> dict[str, int]:
        """As the protocol has it."""
        return {"count": self.count, "ns": self.ns}


PARTS = ("compute_input", "compute_infer", "compute_output")


@dataclass
class BatchTimes:
    """Of the batches of one size: nanoseconds of each of `PARTS`."""

    parts: tuple[Duration, Duration, Duration] = field(
        default_factory=lambda: (Duration(), Duration(), Duration())
    )


@dataclass
class Statistics:
    """Of one version of a model.

    Attributes:
        success: Requests that were answered.
        fail: Requests that were refused or have failed.
        queue: Their time in the queue.
        parts: Their time of each of `PARTS`.
        cancel: Requests whose client went away.
        inferences: Samples.
        executions: Batches.
        last: Milliseconds since 1970 of the last request.
        batches: By size.
        reasons: Failed requests by code of gRPC.
        latency: Of the requests that were answered.
        tokens: That were written.
        first_token: Time to the first token of a text.
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    parts: tuple[Duration, Duration, Duration] = field(
        default_factory=lambda: (Duration(), Duration(), Duration())
    )
    cancel: int = 0
    inferences: int = 0
    executions: int = 0
    last: int = 0
    batches: dict[int, BatchTimes] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    tokens: int = 0
    first_token: Histogram = field(default_factory=Histogram)

    def add_batch(self, rows: int, waited: list[int], times: tuple[int, int, int]) -> None:
        """A batch was computed.

        Args:
            rows: Its samples.
            waited: Nanoseconds that each of its requests was in the queue.
            times: Nanoseconds of each of `PARTS`.
        """
        self.executions += 1
        self.inferences += rows
        self.last = time.time_ns() // 1_000_000
        self.queue.add(sum(waited), len(waited))
        own = self.batches.setdefault(rows, BatchTimes())
        for total, batch, spent in zip(self.parts, own.parts, times, strict=True):
            total.add(spent * len(waited), len(waited))
            batch.add(spent)

    def add_step(self, passes: int, tokens: int, nanoseconds: int) -> None:
        """Texts have gone on.

        Args:
            passes: Of the model.
            tokens: That were written.
            nanoseconds: Of computing.
        """
        self.executions += passes
        self.tokens += tokens
        self.last = time.time_ns() // 1_000_000
        self.parts[1].add(nanoseconds, 0)

    def add_text(self, nanoseconds: int) -> None:
        """A text was written."""
        self.inferences += 1
        self.parts[1].add(0)
        self.add_success(nanoseconds)

    def add_success(self, nanoseconds: int) -> None:
        """A request was answered."""
        self.success.add(nanoseconds)
        self.latency.add(nanoseconds)

    def add_failure(self, code: str, nanoseconds: int) -> None:
        """A request was refused or has failed."""
        self.fail.add(nanoseconds)
        self.reasons[code] += 1

    def to_dict(self, name: str, version: str, size: int) -> dict[str, Any]:
        """As the protocol has it.

        Args:
            name: Of the model.
            version: Of the model.
            size: Bytes of its parameters, on each rank.
        """
        none = Duration().to_dict()
        durations = {part: total.to_dict() for part, total in zip(PARTS, self.parts, strict=True)}
        return {
            "name": name,
            "version": version,
            "last_inference": self.last,
            "inference_count": self.inferences,
            "execution_count": self.executions,
            "inference_stats": {
                "success": self.success.to_dict(),
                "fail": self.fail.to_dict(),
                "queue": self.queue.to_dict(),
                **durations,
                "cache_hit": none,
                "cache_miss": none,
            },
            "response_stats": {},
            "batch_stats": [
                {"batch_size": rows}
                | {part: spent.to_dict() for part, spent in zip(PARTS, own.parts, strict=True)}
                for rows, own in sorted(self.batches.items())
            ],
            "memory_usage": [{"type": "CPU", "id": 0, "byte_size": size}],
        }
