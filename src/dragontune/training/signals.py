"""Ctrl-C and SIGTERM: both raise KeyboardInterrupt where they arrive, and neither disturbs the saving that follows.

A KeyboardInterrupt can be lost (Python drops one that is raised in a destructor) or turned into another error (by a
compiled extension that is being imported), so the command line remembers that it was asked to stop and asks again until
somebody sees to it. Left out: Windows, which has no SIGALRM.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 2.0
"""Seconds until what was asked is asked again; further signals until then are the same question."""
LEAVE = 4.0
"""Seconds that threads have to end (a request that hangs, say) before an interrupted program leaves without them."""

_asked: list[float] = []
"""When a signal came first and last, of `heard`; the one thing of a process that signals are."""


def heard() -> None:
    """From now on both signals interrupt this program, and are asked again until it says `seen` or saves.

    A Ctrl-C that is ignored already (a job in the background) stays so. Does nothing outside the main thread, which
    alone may set handlers.
    """
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if number == signal.SIGTERM or asked() or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _ask)
    rest()
    _asked.clear()


def asked() -> bool:
    """Whether a signal came since `heard`: whatever goes wrong now may come from it."""
    return bool(_asked)


def rest() -> None:
    """What was asked is not asked again."""
    if threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_REAL, 0)


def seen() -> None:
    """The interruption is being seen to: no signal disturbs what is left to do."""
    rest()
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def leave(code: int) -> None:
    """End the process with `code`, whatever else it would wait for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave_by(code: int) -> None:
    """The same after `LEAVE` seconds, should threads keep it from ending by itself."""
    timer = threading.Timer(LEAVE, leave, (code,))
    timer.daemon = True
    timer.start()


@contextmanager
def ignored() -> Iterator[None]:
    """Within it both are ignored: for the moment in which an interrupted run saves its state."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    seen()
    try:
        yield
    finally:
        if not asked():  # a program that was asked to stop goes on to its end undisturbed
            for number, handler in before.items():
                signal.signal(number, handler)


def _ask(number: int, frame: FrameType | None) -> None:
    again = number == signal.SIGALRM
    if _asked and not again and time.monotonic() < _asked[-1] + AGAIN:
        return
    _asked.append(time.monotonic())
    signal.signal(signal.SIGALRM, _ask)
    signal.setitimer(signal.ITIMER_REAL, AGAIN)
    raise KeyboardInterrupt
