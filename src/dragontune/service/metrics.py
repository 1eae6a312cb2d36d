"""What is counted in a service, in Prometheus' text format; over all worker processes where there are several.

With the environment variable PROMETHEUS_MULTIPROC_DIR set before prometheus_client is imported, every process keeps its
numbers in a file of that folder, and each answers for all.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

SHARED = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
"""Upper bounds of the histogram's parts."""


@dataclass(frozen=True, eq=False)
class Metrics:
    """Counters of one application."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        registry, name = self.registry, "dragontune_service"
        # the class is frozen, its counters count
        for field_name, made in (
            ("requests", Counter(f"{name}_requests", "Requests answered", ["path", "status"], registry=registry)),
            ("items", Counter(f"{name}_items", "Items encoded", registry=registry)),
            ("replays", Counter(f"{name}_replays", "Requests answered from memory", registry=registry)),
            ("errors", Counter(f"{name}_errors", "Requests that failed by our fault", registry=registry)),
            ("seconds", Histogram(f"{name}_seconds", "To answer", ["path"], registry=registry, buckets=SECONDS)),
            ("queue", _gauge(f"{name}_queue", "Requests being read, waiting or computed", registry)),
        ):
            object.__setattr__(self, field_name, made)

    requests: Counter = field(init=False)
    items: Counter = field(init=False)
    replays: Counter = field(init=False)
    errors: Counter = field(init=False)
    seconds: Histogram = field(init=False)
    queue: Gauge = field(init=False)

    def text(self) -> bytes:
        """All numbers."""
        if SHARED not in os.environ:
            return generate_latest(self.registry)
        _bury()
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone)
        return generate_latest(everyone)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A request within."""
        self.queue.inc()
        try:
            yield
        finally:
            self.queue.dec()


def _gauge(name: str, text: str, registry: CollectorRegistry) -> Gauge:
    return Gauge(name, text, registry=registry, multiprocess_mode="livesum")


def _bury() -> None:
    """Processes that are gone have no queue."""
    for path in Path(os.environ[SHARED]).glob("gauge_live*_*.db"):
        with suppress(ValueError, OSError):
            number = int(path.stem.rpartition("_")[2])
            if not Path(f"/proc/{number}").exists() and Path("/proc").exists():
                mark_process_dead(number)
