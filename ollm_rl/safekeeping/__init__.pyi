from .locking import locked as locked
from .outputs import output_file as output_file
from .outputs import output_folder as output_folder
from .signals import catch_sigterm as catch_sigterm

__all__ = [
    "catch_sigterm",
    "locked",
    "output_file",
    "output_folder",
]
