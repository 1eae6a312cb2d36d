"""What is common to the options of all verbs."""

import argparse
from typing import NoReturn

from dragontune.errors import InputError


class Options(argparse.ArgumentParser):
    """The options of a verb; what is wrong with them is one sentence."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(prog=f"dragontune {verb}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """One sentence instead of a usage text."""
        raise InputError(f"expected other arguments, got this: {message}; see {self.prog} --help")
