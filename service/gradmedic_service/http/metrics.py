"""The metrics for Prometheus: requests and their durations, stored steps and values, verdicts, connections.

Labels come only from the route table and from fixed sets, never from what a client sends. So a client cannot create new
series.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gradmedic_service.database.engine import Database

BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper bounds of the durations, in seconds. A block takes some milliseconds, a heatmap up to a tenth of a second."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that have a label of their own; all others are `other`."""
NO_ROUTE = "none"
"""Label of requests that match no route, or that were refused before routing."""


class Metrics:
    """The metrics of one process; threads may share it."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "gradmedic_http_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "gradmedic_http_request_seconds",
            "Seconds from the first byte of a request to the last byte of its answer.",
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
            "Blocks that changed the verdict of their run, by the new verdict.",
            ["verdict"],
            registry=self._registry,
        )
        self._automatic_reruns = Counter(
            "gradmedic_automatic_reruns",
            "Runs that turned unhealthy in a project that reruns them, by what came of it: started, refused, failed.",
            ["result"],
            registry=self._registry,
        )
        self._alert_deliveries = Counter(
            "gradmedic_alert_deliveries",
            "Attempts to deliver an alert, by their results: delivered, failed (it is tried again), dead (it is not).",
            ["result"],
            registry=self._registry,
        )
        self._in_use = Gauge(
            "gradmedic_database_connections_in_use", "Connections taken from the pool.", registry=self._registry
        )
        self._pool_size = Gauge(
            "gradmedic_database_connections_max", "Connections that the pool holds at most.", registry=self._registry
        )
        self._counters: dict[tuple[str, str, int], tuple[Any, Any]] = {}

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request and its duration."""
        counters = self._counters.get((method, route, status))
        if counters is None:
            label = method if method in METHODS else "other"
            counters = (self._requests.labels(label, route, str(status)), self._seconds.labels(label, route))
            if label == method:
                self._counters[method, route, status] = counters
        requests, durations = counters
        requests.inc()
        durations.observe(seconds)

    def count_block(self, steps: int, values: int, changed_to: str | None) -> None:
        """Count the steps and values of a stored block, and the new verdict if the block changed it."""
        self._steps.inc(steps)
        self._values.inc(values)
        if changed_to is not None:
            self._verdicts.labels(changed_to).inc()

    def count_automatic_rerun(self, result: str) -> None:
        """Count an attempt to rerun a run without a request: `started`, `refused` or `failed`."""
        self._automatic_reruns.labels(result).inc()

    def count_alert_delivery(self, result: str) -> None:
        """Count an attempt to deliver an alert: `delivered`, `failed` or `dead`."""
        self._alert_deliveries.labels(result).inc()

    def render(self, database: Database) -> bytes:
        """Return all metrics in Prometheus's text format."""
        in_use, maximum = database.count_connections()
        self._in_use.set(in_use)
        self._pool_size.set(maximum)
        return generate_latest(self._registry)
