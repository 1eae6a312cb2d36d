"""Which of several addresses is asked next: a circuit breaker each (Nygard, Release It!, 2007), the least busy first.

After `opens` failures in a row an address rests for `rest` seconds; then one request tries it, and its outcome decides.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Circuit:
    failures: int = 0
    busy: int = 0
    rests_until: float = 0.0
    tried: bool = False
    """Whether a request is finding out if the address is well again."""


class Circuits:
    """Of `count` addresses, by their numbers. Threads may share it.

    >>> circuits = Circuits(2)
    >>> number = circuits.take()
    >>> circuits.give(number, True)
    """

    def __init__(
        self, count: int, opens: int = 5, rest: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._all = [_Circuit() for _ in range(count)]
        self._opens, self._rest, self._clock = opens, rest, clock
        self._lock, self._turn, self._told = threading.Lock(), 0, float("-inf")

    def take(self) -> int | None:
        """An address to ask: one whose rest is over, else the least busy of those that are well; None: all rest."""
        with self._lock:
            now = self._clock()
            for number, circuit in enumerate(self._all):
                if self._open(circuit) and now >= circuit.rests_until and not circuit.tried:
                    circuit.tried = True
                    circuit.busy += 1
                    return number
            well = [number for number, circuit in enumerate(self._all) if not self._open(circuit)]
            if not well:
                return None
            self._turn += 1
            count = len(self._all)
            chosen = min(well, key=lambda number: (self._all[number].busy, (number - self._turn) % count))
            self._all[chosen].busy += 1
            return chosen

    def give(self, number: int, well: bool | None) -> None:
        """What came of it; None says nothing of the address."""
        with self._lock:
            circuit = self._all[number]
            circuit.busy -= 1
            circuit.tried = False
            if well:
                circuit.failures = 0
            elif well is False:
                circuit.failures += 1
                if self._open(circuit):
                    circuit.rests_until = self._clock() + self._rest

    def wait(self) -> float:
        """Seconds until one may be asked again; a little where a request is finding that out."""
        with self._lock:
            now = self._clock()
            return min(max(circuit.rests_until - now, 0.05) for circuit in self._all)

    def may_tell(self, every: float = 60.0) -> bool:
        """Whether nobody has told the user of trouble in so many seconds; whoever is told yes does."""
        with self._lock:
            now = self._clock()
            if now - self._told < every:
                return False
            self._told = now
            return True

    def _open(self, circuit: _Circuit) -> bool:
        return circuit.failures >= self._opens
