"""Ctrl-C and SIGTERM: both raise KeyboardInterrupt where they arrive, and neither disturbs the saving that follows."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def raised() -> Iterator[None]:
    """Within it SIGTERM (how schedulers and `docker stop` ask) does what Ctrl-C does."""
    with _handled(signal.default_int_handler):
        yield


@contextmanager
def ignored() -> Iterator[None]:
    """Within it both are ignored: for the moment in which an interrupted run saves its state."""
    with _handled(signal.SIG_IGN):
        yield


@contextmanager
def _handled(handler: "signal.Handlers | signal._HANDLER") -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
