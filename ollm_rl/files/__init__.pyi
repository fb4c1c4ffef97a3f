from .checksums import check_file as check_file
from .checksums import check_folder as check_folder
from .intact import intact as intact
from .records import read_object as read_object
from .records import read_rows as read_rows
from .records import sealed_json as sealed_json
from .tensors import load_tensors as load_tensors
from .tensors import sealed_tensors as sealed_tensors
from .tensors import sealed_weights as sealed_weights

__all__ = [
    "check_file",
    "check_folder",
    "intact",
    "load_tensors",
    "read_object",
    "read_rows",
    "sealed_json",
    "sealed_tensors",
    "sealed_weights",
]
