from .run import run_teacher_forced as run_teacher_forced
from .run import teacher_forced as teacher_forced

__all__ = [
    "run_teacher_forced",
    "teacher_forced",
]
