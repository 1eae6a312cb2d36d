"""Freed memory."""

import subprocess
import sys

import pytest

from dragontune.training import allocator

SCATTERED = """
import os
from pathlib import Path
from dragontune.training import allocator

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

blocks = [bytes(60_000) for _ in range(3_000)]
kept = blocks[::100]
del blocks
before = resident()
print(allocator.give_back(), before - resident())
"""


@pytest.mark.skipif(allocator._trim() is None, reason="another C library")
def test_what_was_freed_goes_back():
    said = subprocess.run([sys.executable, "-c", SCATTERED], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == "True"
    assert int(said[1]) > 100  # of 170 MiB in pieces that lie between others


def test_where_the_library_cannot_nothing_happens(monkeypatch):
    monkeypatch.setattr(allocator, "_trim", lambda: None)
    assert allocator.give_back() is False
