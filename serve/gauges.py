"""Counters and times for /metrics, and the times that Retry-After is told from."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SMOOTH = 0.2
_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


class Gauges:
    """A registry of its own, so that several may stand in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counts = Counter("imprint_events", "What happened", ["what", "outcome"], registry=self.registry)
        self._seconds = Histogram(
            "imprint_seconds", "How long it took", ["what"], buckets=_BUCKETS, registry=self.registry
        )
        self._concepts = Gauge("imprint_concepts", "Concepts by state", ["state"], registry=self.registry)
        self._drawing = Gauge("imprint_images_in_flight", "Pictures waiting or being drawn", registry=self.registry)
        self._replicas = Gauge("imprint_replicas", "Replicas heard of lately", ["pool"], registry=self.registry)
        self.tune_s = 10.0
        self.draw_s = 2.0

    def count(self, what: str, outcome: str, by: int = 1) -> None:
        self._counts.labels(what, outcome).inc(by)

    def took(self, what: str, seconds: float) -> None:
        """A tune or a draw that succeeded."""
        self._seconds.labels(what).observe(seconds)
        name = f"{what}_s"
        setattr(self, name, (1 - _SMOOTH) * getattr(self, name) + _SMOOTH * seconds)

    def text(self, states: Mapping[str, int], *, drawing: int, tuners: int, samplers: int) -> str:
        """Prometheus' text format."""
        for state, count in states.items():
            self._concepts.labels(state).set(count)
        self._drawing.set(drawing)
        self._replicas.labels("tuner").set(tuners)
        self._replicas.labels("sampler").set(samplers)
        return generate_latest(self.registry).decode()
