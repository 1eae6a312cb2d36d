"""The readers of bytes under atheris (libFuzzer), which follows coverage of our own code.

atheris is in no lock file and needs no place in .venv; it borrows the packages there (the same Python 3.11):

    python3.11 -m venv .build/atheris && .build/atheris/bin/python -m pip install atheris
    PYTHONPATH=src:.venv/lib/python3.11/site-packages .build/atheris/bin/python benchmarks/fuzz_readers.py -runs=20000

The first byte chooses the reader. Any other exception than those a reader promises ends the run with a traceback and
exit code 77; other options are libFuzzer's (-max_total_time=60, -seed=1, a folder of inputs to begin with).
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports]

with atheris.instrument_imports(include=["dragontune"]):
    from dragontune import json_files, tensor_files, wire
    from dragontune.commands import yaml_files
    from dragontune.errors import InputError
    from dragontune.media import audio, image
    from dragontune.reference import Reference
    from dragontune.rewards.aesthetics import Head

FOLDER = tempfile.TemporaryDirectory()


def of_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A reader of files as one of bytes."""
    path = Path(FOLDER.name) / name

    def once(content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return once


READERS: list[Callable[[bytes], object]] = [
    lambda content: yaml_files.load(content, "it"),
    json_files.loads,
    tensor_files.loads,
    wire.Message.load,
    of_file("a.wav", audio.read),
    of_file("a.flac", audio.read),
    of_file("a.ogg", audio.read),
    of_file("a.mp3", audio.read),
    of_file("a.png", image.Images.read),
    of_file("a.gif", image.Images.read),
    of_file("a.m3u", audio.playlist),
    of_file("a.safetensors", Reference.load),
    of_file("b.safetensors", Head.load),
]


def once(content: bytes) -> None:
    """One input."""
    if not content:
        return
    try:
        READERS[content[0] % len(READERS)](content[1:])
    except (InputError, ValueError):
        return


if __name__ == "__main__":
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
