from .degenerate import degeneracy as degeneracy
from .language import detect_language as detect_language
from .language import measure_switching as measure_switching
from .language import switches_language as switches_language
from .rates import degeneracy_rate as degeneracy_rate
from .rates import language_switching_rate as language_switching_rate
from .rates import switches_per_1000_words as switches_per_1000_words
from .rates import unknown_language_rate as unknown_language_rate
from .statistics import bootstrap_interval as bootstrap_interval
from .statistics import compare_paired as compare_paired

__all__ = [
    "bootstrap_interval",
    "compare_paired",
    "degeneracy",
    "degeneracy_rate",
    "detect_language",
    "language_switching_rate",
    "measure_switching",
    "switches_language",
    "switches_per_1000_words",
    "unknown_language_rate",
]
