"""What can go wrong, by whose fault; the command line turns each into its exit code."""


class InputError(ValueError):
    """The user's input is wrong: one sentence that says what was expected, what was got and the remedy. Exit code 2."""


class NonFiniteError(RuntimeError):
    """A reward, loss or gradient is not finite; the message names the item. Exit code 5."""


class InterruptedRun(RuntimeError):  # noqa: N818 - an interruption, not an error
    """Ctrl-C or SIGTERM arrived; the state is saved and the message says how to resume. Exit code 75."""


class LostService(RuntimeError):  # noqa: N818 - a loss, not an error
    """A reward service did not answer as it must, however often it was asked; what was done is saved. Exit code 6."""
