"""What Prometheus is told: requests, how long they took, what was ingested, verdicts, connections.

One idea: labels come from the route table and from enumerations alone, never from what a client sends, so that nobody
can make series up.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gradmedic_service.database.engine import Database

BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Seconds; a block takes some milliseconds, a heatmap up to a tenth of a second."""
NO_ROUTE = "none"
"""The route of what matches none, or was refused before one was looked for."""


class Metrics:
    """The metrics of one process; safe to share between threads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "gradmedic_http_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "gradmedic_http_request_seconds",
            "From a request's first byte to its answer's last.",
            ["method", "route"],
            registry=self._registry,
            buckets=BUCKETS,
        )
        self._steps = Counter("gradmedic_steps_ingested", "Steps stored.", registry=self._registry)
        self._values = Counter(
            "gradmedic_values_ingested",
            "Statistics stored: sampled steps x layers x statistics.",
            registry=self._registry,
        )
        self._verdicts = Counter(
            "gradmedic_verdict_changes",
            "Blocks after which a run had another verdict than before, by the new one.",
            ["verdict"],
            registry=self._registry,
        )
        self._in_use = Gauge(
            "gradmedic_database_connections_in_use", "Connections taken from the pool.", registry=self._registry
        )
        self._pool_size = Gauge(
            "gradmedic_database_connections_max", "Connections that the pool holds at most.", registry=self._registry
        )
        self._children: dict[tuple[str, str, int], tuple[Any, Any]] = {}

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        found = self._children.get((method, route, status))
        if found is None:
            known = method if method in METHODS else "other"
            found = (self._requests.labels(known, route, str(status)), self._seconds.labels(known, route))
            if known == method:
                self._children[method, route, status] = found
        requests, durations = found
        requests.inc()
        durations.observe(seconds)

    def count_block(self, steps: int, values: int, changed_to: str | None) -> None:
        """Count what a block added, and the verdict that it changed to, if it changed."""
        self._steps.inc(steps)
        self._values.inc(values)
        if changed_to is not None:
            self._verdicts.labels(changed_to).inc()

    def exposition(self, database: Database) -> bytes:
        """Return everything in Prometheus's text format."""
        in_use, most = database.connections()
        self._in_use.set(in_use)
        self._pool_size.set(most)
        return generate_latest(self._registry)


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
