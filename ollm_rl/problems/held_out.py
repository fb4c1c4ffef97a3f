"""Questions of an evaluation are kept out of training, also where they are written a little differently."""

import re
import unicodedata
from collections.abc import Sequence

from ollm_rl.problems.problem import Problem

# Differences that are ignored when questions are compared. "-", "!", "'" and brackets are kept, because they are also
# mathematical signs; a point or comma before a digit belongs to a number or a pair.
_STRAIGHT = str.maketrans("‘’“”‐–—−", "''\"\"----")
_SPARE = re.compile(r'(?:[\s"?¿¡:;]|[.,](?!\d))+')


def exclude_questions(problems: Sequence[Problem], held_out: Sequence[Problem]) -> list[Problem]:
    """The problems whose questions are not among the held-out questions, in their order.

    Questions are compared after normalization:

    - Unicode's NFKC form (full-width digits become plain ones) and case folding;
    - straight quotes for ``‘’“”``, and ``-`` for the dashes ``‐–—−``;
    - one space for every run of white space, ``"``, ``?``, ``¿``, ``¡``, ``:``, ``;``, and full stops and commas that
      no digit follows; no spaces at the ends.

    All other characters count.
    """
    excluded = {_normalized(problem.question) for problem in held_out}
    return [problem for problem in problems if _normalized(problem.question) not in excluded]


def _normalized(question: str) -> str:
    text = unicodedata.normalize("NFKC", question).casefold().translate(_STRAIGHT)
    return _SPARE.sub(" ", text).strip()
