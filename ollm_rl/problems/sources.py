"""Problems with a checkable answer from five kinds of sources, each named by a string.

``arith`` generates problems, ``rg:TASK`` gets them from reasoning-gym, ``jsonl:PATH`` and ``parquet:PATH`` read files,
and ``hf:ID`` or ``hf:ID:CONFIG`` reads a Hugging Face data set from the hub or a local folder.
"""

from collections.abc import Callable
from pathlib import Path

from ollm_rl.errors import UsageError
from ollm_rl.problems.columns import read_columns
from ollm_rl.problems.generated import generate_arith, generate_reasoning_gym
from ollm_rl.problems.jsonl import read_jsonl
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.tables import read_hub, read_parquet
from ollm_rl.settings import Count, Seed, checked, shown

FORMS = "arith, rg:TASK, jsonl:PATH, parquet:PATH, or hf:ID (hf:ID:CONFIG)"


def load_problems(
    spec: str, *, split: str = "train", columns: str | None = None, limit: int | None = None, seed: int = 0
) -> list[Problem]:
    """Load the problems that ``spec`` names; equal arguments give equal problems.

    Args:
        spec: ``arith``, ``rg:TASK``, ``jsonl:PATH``, ``parquet:PATH`` (a file or a pattern), ``hf:ID`` or
            ``hf:ID:CONFIG``.
        split: ``train``, ``validation`` or ``test`` for ``arith`` and ``rg``, each an independent random stream. Any
            split of the data set for ``hf``. Not used for files, which are one split.
        columns: Names of the columns of a file or data set, such as ``question=problem,answer=expected_answer``. None
            recognises the schemas in `ollm_rl.problems.columns.KNOWN`. Without an answer, it is what the solution
            states in its last box or after ``####``.
        limit: Maximum number of problems: of files and data sets a sample drawn with ``seed``, which is all that is
            held in memory, in their order. None means all problems, for ``arith`` 10,000 and for ``rg`` 1,000.
        seed: Seed of the generated problems and of the sample.

    Raises:
        UsageError: If an argument is not one of the above, if the source is malformed or unknown, if it holds no
            problems, or if ``rg:`` is requested without reasoning-gym installed.
        MissingError: If a file does not exist.
    """
    limit, seed = checked("limit", limit, Count | None), checked("seed", seed, Seed)
    split = checked("split", split, str)
    kind, _, rest = checked("problems", spec, str).partition(":")
    named = read_columns(checked("columns", columns, str | None))
    readers: dict[str, Callable[[], list[Problem]]] = {
        "rg": lambda: generate_reasoning_gym(rest, split, limit, seed),
        "jsonl": lambda: read_jsonl(Path(rest), named, limit, seed),
        "parquet": lambda: read_parquet(rest, named, limit, seed),
        "hf": lambda: read_hub(rest, split, named, limit, seed),
    }
    if spec != "arith" and (kind not in readers or not rest):
        raise UsageError(f"problems={shown(spec)} names no source of problems; give {FORMS}")
    if named is not None and kind in ("arith", "rg"):
        raise UsageError(f"columns={shown(columns)} is not used by generated problems; leave it out")
    if spec == "arith":
        return generate_arith(split, limit, seed)
    problems = readers[kind]()
    if not problems:
        raise UsageError(f"{spec} holds no problems; give a source that has at least one")
    return problems
