"""Generated problems: ``arith`` and the tasks of reasoning-gym. Every split is a random stream of its own."""

import difflib

from ollm_rl.errors import UsageError, extra, one_line
from ollm_rl.problems import arith
from ollm_rl.problems.problem import Problem
from ollm_rl.streams import Purpose, integer_seed, numpy_generator

SPLITS = ("train", "validation", "test")
DEFAULT_ARITH = 10_000  # problems
DEFAULT_RG = 1_000  # problems


def generate_arith(split: str, limit: int | None, seed: int) -> list[Problem]:
    """Word problems of `ollm_rl.problems.arith`."""
    generator = numpy_generator(seed, Purpose.PROBLEMS, _split_index(split))
    return [
        Problem(
            id=f"arith-{split}-{seed}-{index}",
            question=item.question,
            solution=item.solution,
            answer=str(item.answer),
            language=item.language,
        )
        for index, item in enumerate(arith.generate(limit or DEFAULT_ARITH, generator))
    ]


def generate_reasoning_gym(task: str, split: str, limit: int | None, seed: int) -> list[Problem]:
    """Problems of a task of reasoning-gym, without solutions.

    Raises:
        MissingError: If the package is missing.
        UsageError: If there is no such task, or its problems have no reference answers.
    """
    # reasoning-gym seeds entry i with seed + i, so neighbouring seeds would share all but one of their problems.
    task_seed = integer_seed(seed, Purpose.PROBLEMS, _split_index(split))
    with extra("rg"):
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    if task not in DATASETS:
        close = difflib.get_close_matches(task, DATASETS, n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "reasoning_gym.factory.DATASETS lists them"
        raise UsageError(f"rg:{task} is not a task of reasoning-gym; {hint}")
    try:
        entries = list(reasoning_gym.create_dataset(task, size=limit or DEFAULT_RG, seed=task_seed))
    except (AssertionError, TypeError) as error:
        raise UsageError(f"rg:{task} needs settings of its own ({one_line(error)}); choose another task") from error
    if any(entry["answer"] is None for entry in entries):
        raise UsageError(f"rg:{task} has problems without a reference answer; choose a task that states one")
    return [
        Problem(
            id=f"{task}-{split}-{seed}-{index}",
            question=entry["question"],
            solution="",
            answer=str(entry["answer"]),
            language="en",
        )
        for index, entry in enumerate(entries)
    ]


def _split_index(split: str) -> int:
    if split not in SPLITS:
        raise UsageError(f"split={split!r} is unknown for generated problems; give one of {', '.join(SPLITS)}")
    return SPLITS.index(split)
