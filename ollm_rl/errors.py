"""Mistakes that the user can mend, told in one line.

The command line prints a ``UsageError`` as one line and exits with 2. Any other exception is a fault of ours: it keeps
its traceback and asks for a report.
"""


class UsageError(ValueError):
    """A mistake of the user; the message is one line that names the value and the remedy."""


class MissingError(UsageError, FileNotFoundError):
    """A file, folder, model or package that the user named is not there."""


class RunError(RuntimeError):
    """A run that cannot continue for no fault in its settings; the message says all there is to know."""


def one_line(error: BaseException | str) -> str:
    """What an exception says, without its line breaks; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
