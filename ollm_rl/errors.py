"""Errors for mistakes that the user can fix, described in one line.

The command line prints a ``UsageError`` as one line and exits with 2, and a ``RunError`` with 1. Any other exception is
a bug: it keeps its traceback and asks for a report.
"""


class UsageError(ValueError):
    """A mistake of the user. The message is one line that names the value and how to fix it."""


class MissingError(UsageError, FileNotFoundError):
    """A file, folder, model or package that the user named is not there."""


class DamagedError(UsageError):
    """A file is damaged or broken. The message names it."""


class RunError(RuntimeError):
    """A run cannot continue although its settings are valid. The message contains all known details."""


def one_line(error: BaseException | str) -> str:
    """An exception's message without line breaks, or its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__
