"""What is common to all verbs: their options, and what is said beside their output."""

import argparse
import os
import sys
import warnings
from typing import NoReturn

from dragontune.errors import InputError
from dragontune.plain_text import line


class Options(argparse.ArgumentParser):
    """The options of a verb; what is wrong with them is one sentence."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(prog=f"dragontune {verb}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """One sentence instead of a usage text."""
        raise InputError(f"expected other arguments, got this: {message}; see {self.prog} --help")


def speak_plainly() -> None:
    """Our own warnings as one line each; other packages' not at all."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("always", module=r"dragontune\.")
    warnings.showwarning = lambda message, *_: print(f"dragontune: warning: {line(str(message))}", file=sys.stderr)
