"""Where embeddings are kept between commands, and how the user says so."""

import argparse
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from dragontune.embedding_cache import EmbeddingCache

VARIABLE = "DRAGONTUNE_CACHE"
"""The environment variable that names another folder."""


def add_options(options: argparse.ArgumentParser) -> None:
    """`--cache`, `--no-cache` and `--workers`."""
    either = options.add_mutually_exclusive_group()
    either.add_argument("--cache", type=Path, metavar="DIR", help=f"where embeddings are kept (default: {_short()})")
    either.add_argument("--no-cache", action="store_true", help="embed everything, keep nothing")
    options.add_argument("--workers", type=int, metavar="N", help="threads that decode (default: one a processor)")


def opened(given: argparse.Namespace) -> AbstractContextManager[EmbeddingCache | None]:
    """The cache that the options ask for."""
    return nullcontext() if given.no_cache else EmbeddingCache(given.cache or default_folder())


def default_folder() -> Path:
    """`$DRAGONTUNE_CACHE`, else the folder for caches of this platform and in it `dragontune`."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "dragontune"


def _short() -> str:
    """The default as a user knows it; % would be taken for a format."""
    home, folder = str(Path.home()), str(default_folder())
    return (f"~{folder[len(home) :]}" if folder.startswith(home + os.sep) else folder).replace("%", "%%")
