"""Prometheus metrics: of HTTP requests, of tokens as clients get them, of the engine."""

from collections.abc import Callable, Iterator
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from rung.engine.service import Service

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, service: Callable[[], Service | None]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_EngineCollector(service))
        self.requests = Counter(
            "rung_http_requests",
            "Answered requests; status 499: the client went away.",
            ["endpoint", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "rung_http_request_seconds",
            "From the request to the end of its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "rung_time_to_first_token_seconds",
            "From the request to the first text of its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.gap = Histogram(
            "rung_inter_token_seconds",
            "Between two pieces of one stream.",
            buckets=_GAPS,
            registry=self.registry,
        )
        self.swaps = Counter(
            "rung_model_swaps",
            "Promoted models taken over; result is ok or failed.",
            ["result"],
            registry=self.registry,
        )


class _EngineCollector(Collector):
    """The engine's own figures, read when somebody asks for them."""

    def __init__(self, service: Callable[[], Service | None]) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service = self._service()
        if service is None:
            return
        for name, value in asdict(service.stats()).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            text = name.replace("_", " ")
            if name.endswith("_total"):
                yield CounterMetricFamily(f"rung_{name}", text, value=value)
            else:
                yield GaugeMetricFamily(f"rung_{name}", text, value=value)
