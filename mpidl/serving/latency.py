"""A histogram of latencies, of which percentiles of any span of time can be found later."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

# Nanoseconds: 100 us to 52 s. Neighbors differ by 41 %, a percentile between two of them by less
LIMITS = tuple(round(1e5 * 2 ** (k / 2)) for k in range(39))


class Histogram:
    """Counts of latencies, by the smallest of `LIMITS` that they do not exceed.

    Attributes:
        count: All.
        ns: Their nanoseconds together.
    """

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0
        self._counts = [0] * (len(LIMITS) + 1)

    def add(self, nanoseconds: int) -> None:
        """One latency."""
        self.count += 1
        self.ns += nanoseconds
        self._counts[bisect_left(LIMITS, nanoseconds)] += 1

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """As Prometheus has it: how many did not exceed each limit, in seconds.

        Args:
            name: Of the metric.
            labels: Of the series, such as `model="a",version="1"`.
        """
        total = 0
        for limit, count in zip(LIMITS, self._counts, strict=False):
            total += count
            yield f'{name}_bucket{{{labels},le="{limit * 1e-9:.6g}"}} {total}'
        yield f'{name}_bucket{{{labels},le="+Inf"}} {self.count}'
        yield f"{name}_sum{{{labels}}} {self.ns * 1e-9:.9f}"
        yield f"{name}_count{{{labels}}} {self.count}"
