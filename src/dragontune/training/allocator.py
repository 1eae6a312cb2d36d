"""Between rounds, freed memory goes back to the system.

The C library keeps what was freed for later use, in pieces between what is still in use, so that a long run seems to
grow though it holds no more than before. Left out: other C libraries than glibc, and PyTorch's own cache on a GPU,
which is used again whole.
"""

import ctypes
import sys
from functools import cache


def give_back() -> bool:
    """Whether there was something to give back; False also where the C library cannot."""
    trim = _trim()
    return trim is not None and bool(trim(0))


@cache
def _trim() -> "ctypes._NamedFuncPointer | None":
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
