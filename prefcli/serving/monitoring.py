"""What ``/metrics`` shows, in Prometheus' text format. Nothing here holds a text of a request."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATTLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Monitor:
    """Counters of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "prefcli_requests_total", "Requests answered.", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "prefcli_request_seconds", "From a request's head to its answer.", ("path",), registry=self.registry,
            buckets=SECONDS,
        )  # fmt: skip
        self.batches = Histogram(
            "prefcli_batch_battles", "Battles, or single answers, computed together.", registry=self.registry,
            buckets=BATTLES,
        )  # fmt: skip
        self.battles = Counter("prefcli_battles_total", "Battles, or single answers, computed.", registry=self.registry)
        self.queue = Gauge("prefcli_queue_requests", "Requests that wait.", registry=self.registry)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Show the length of a queue."""
        self.queue.set_function(length)

    def observe_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def observe_batch(self, battles: int) -> None:
        """Count what was computed together."""
        self.batches.observe(battles)
        self.battles.inc(battles)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)
