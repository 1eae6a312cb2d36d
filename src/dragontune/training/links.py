"""Symbolic links in a folder that is written to: none may lead out of it, so that nothing is written elsewhere."""

import os
from pathlib import Path

from dragontune.errors import InputError


def refuse(folder: Path) -> None:
    """Look through a folder before it is written to; it may be a link itself, and need not be there.

    Raises:
        InputError: something in it is a link to a place outside.
    """
    home = folder.resolve()
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            entry = Path(place) / name
            if entry.is_symlink() and not _target(entry).is_relative_to(home):
                raise InputError(
                    f"expected a folder whose files are its own, got {entry}, a link to {_target(entry)}; remove the "
                    f"link (if another disk is to hold the files, {folder} itself may be a link)"
                )


def _target(entry: Path) -> Path:
    """Where a link leads; one that leads in a circle stays where it is."""
    try:
        return entry.resolve()
    except (OSError, RuntimeError):
        return entry.parent.resolve() / entry.name
