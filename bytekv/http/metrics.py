"""Metrics: counters of requests, and their text for Prometheus.

The form is version 0.0.4 of the text format (https://prometheus.io/docs/instrumenting/exposition_formats/).
Labels are names of operations and statuses, never anything that a client has sent.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Final

from ..contract.reports import Stats

__all__ = ["Metrics"]

_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """Counters of one application, from its start on."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._replies: Counter[tuple[str, int]] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._seconds: Counter[str] = Counter()

    def count(self, operation: str, status: int, seconds: float) -> None:
        """Count one reply."""
        self._replies[operation, status] += 1
        buckets = self._buckets.setdefault(operation, [0] * (len(_BUCKETS_S) + 1))
        buckets[bisect_left(_BUCKETS_S, seconds)] += 1
        self._seconds[operation] += seconds  # type: ignore[assignment]

    def requests(self) -> dict[str, int]:
        """Return how often each operation has been asked for."""
        return {operation: sum(buckets) for operation, buckets in sorted(self._buckets.items())}

    def text(self, stats: Stats) -> str:
        """Return everything for Prometheus."""
        return "".join(line + "\n" for line in [*self._store_lines(stats), *self._own_lines()])

    def _store_lines(self, stats: Stats) -> Iterable[str]:
        yield from _family("keys", "gauge", "Keys in the store.", [("", stats.keys)])
        expired = [("", stats.expired_keys)]
        yield from _family("expired_keys", "gauge", "Expired keys in memory until their grace is over.", expired)
        bytes_by_state = [('{state="live"}', stats.live_bytes), ('{state="dead"}', stats.dead_bytes)]
        yield from _family("bytes", "gauge", "Bytes of the segments, by what a compaction would do.", bytes_by_state)
        yield from _family("segments", "gauge", "Segments of the log.", [("", len(stats.segments))])
        yield from _family("open_segments", "gauge", "Segments that are kept open.", [("", stats.open_segments)])
        yield from _family("open_views", "gauge", "Snapshots and iterators in use.", [("", stats.open_views)])
        yield from _family("pinned_bytes", "gauge", "Bytes kept only for them.", [("", stats.pinned_bytes)])
        yield from _family("last_seq", "counter", "Operations ever written.", [("", stats.last_seq)])
        yield from _family("durable_seq", "counter", "Operations that survive a power cut.", [("", stats.durable_seq)])
        yield from _family("compactions_total", "counter", "Compactions since opening.", [("", stats.compactions)])
        throttled = stats.throttled_s
        yield from _family(
            "throttled_seconds", "counter", "Time that writers waited for compactions.", [("", throttled)]
        )
        failed = int(stats.background_error is not None)
        yield from _family("background_failed", "gauge", "1 if the last work in the background failed.", [("", failed)])

    def _own_lines(self) -> Iterable[str]:
        yield from _family("http_requests_in_flight", "gauge", "Requests under way.", [("", self.in_flight)])
        replies = [
            (f'{{operation="{operation}",status="{status}"}}', count)
            for (operation, status), count in sorted(self._replies.items())
        ]
        yield from _family("http_requests_total", "counter", "Replies, by operation and status.", replies)
        samples: list[tuple[str, float]] = []
        for operation, buckets in sorted(self._buckets.items()):
            total = 0
            for bound, count in zip((*map(repr, _BUCKETS_S), "+Inf"), buckets, strict=True):
                total += count
                samples.append((f'_bucket{{operation="{operation}",le="{bound}"}}', total))
            samples.append((f'_sum{{operation="{operation}"}}', round(self._seconds[operation], 6)))
            samples.append((f'_count{{operation="{operation}"}}', total))
        yield from _family("http_request_seconds", "histogram", "Time until the whole reply was handed over.", samples)


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[str, float]]) -> Iterable[str]:
    yield f"# HELP bytekv_{name} {text}"
    yield f"# TYPE bytekv_{name} {kind}"
    for labels, value in samples:
        yield f"bytekv_{name}{labels} {value}"
