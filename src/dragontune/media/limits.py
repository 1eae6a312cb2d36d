"""How much one file may turn into: a small file can declare, or unpack to, more than any memory holds."""

import os
from pathlib import Path

from dragontune.errors import InputError


def most(variable: str, usual: int) -> int:
    """A limit: what an environment variable says, else the usual one.

    Raises:
        InputError: it says no positive whole number.
    """
    text = os.environ.get(variable)
    if text is None:
        return usual
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 19 and int(text)):
        raise InputError(f"expected a positive whole number in {variable}, got {text!r}; {usual} is the default")
    return int(text)


def there(path: Path) -> bool:
    """Whether there is a file; a text that can be no path names none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
