"""Rewards of one's own: functions with TRL's signature, given in Python or by the command line as FILE.py:FUNCTION.

    def brevity(prompts, completions, **columns):
        return [-len(completion) / 100 for completion in completions]

Prompts are the questions, and columns are the fields of the problems (``id``, ``question``, ``solution``, ``answer``,
``language``), all as lists with one entry per completion. A function returns one number per completion, or None for a
completion that it says nothing about. It may be async.
"""

import asyncio
import dataclasses
import hashlib
import importlib.util
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ollm_rl.envs.rewards import TERMS
from ollm_rl.errors import MissingError, RunWarning, UsageError, one_line
from ollm_rl.problems.problem import Problem
from ollm_rl.settings import Weight, checked, shown
from ollm_rl.settings.base import LARGEST

TAKEN = (*TERMS, "failures", "spread", "token", "completion", "verdict")  # names in metrics or in ``info``
FORM = "FILE.py:FUNCTION or FILE.py:FUNCTION=WEIGHT"
END = 60  # characters of a completion that a message quotes

Columns = Mapping[str, Any]  # of one completion


@dataclass(frozen=True)
class OwnReward:
    """A function of one's own with its weight in the reward.

    Attributes:
        function: Takes ``prompts``, ``completions`` and the columns as keywords.
        name: Name of the term, in metrics too; the function's own name if left out.
        weight: Weight of the term.

    Raises:
        UsageError: If the function does not take these keywords, or name or weight do not fit.
    """

    function: Callable[..., Any]
    name: str = ""
    weight: float = 1.0
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise UsageError(f"reward={shown(self.function)} is no function; give one, or {FORM}")
        name = self.name or getattr(self.function, "__name__", "")
        if not name.isidentifier() or name in TAKEN:
            raise UsageError(
                f"reward {name or shown(self.function)!r} cannot have this name; rename it, or give OwnReward(name=...)"
            )
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "weight", checked(f"the weight of {name}", self.weight, Weight))
        try:
            known: dict[str, Any] = {column.name: [] for column in dataclasses.fields(Problem)}
            inspect.signature(self.function).bind(prompts=[], completions=[], **known)
        except TypeError as error:
            raise UsageError(
                f"reward {name} has another signature ({one_line(error)}); write def {name}(prompts, completions, "
                "**columns)"
            ) from error
        except ValueError:  # some functions of C have no signature
            pass


class Scores(NamedTuple):
    """What functions of one's own say about a completion.

    Attributes:
        terms: Their values by name, unweighted; without those that returned None.
        faults: Why a function failed on the completion, by name.
    """

    terms: dict[str, float]
    faults: dict[str, str]


Rewards = Callable[..., Any] | str | OwnReward | Sequence[Callable[..., Any] | str | OwnReward] | None


def own_rewards(given: Rewards, functions: Sequence[Callable[..., Any]] = ()) -> list[OwnReward]:
    """The functions that are given as such, as `OwnReward` or as ``FILE.py:FUNCTION``; files are run here.

    Args:
        given: One or several.
        functions: Functions that ``given`` may name without a file.

    Raises:
        MissingError: If there is no such file.
        UsageError: If a file cannot be run or lacks the function, two have one name, or as `OwnReward`.
    """
    listed: Any = [] if given is None else given
    if isinstance(listed, str) or not isinstance(listed, Sequence):
        listed = [listed]
    by_name = {getattr(function, "__name__", ""): function for function in functions}
    modules: dict[Path, Any] = {}
    rewards = [_own_reward(one, modules, by_name) for one in listed]
    names = [reward.name for reward in rewards]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two functions of reward are named {name!r}; rename one")
    return rewards


def measured_rewards(given: Rewards) -> list[OwnReward]:
    """`own_rewards` of a command that measures each by itself, and so uses no weight.

    Raises:
        UsageError: If one has a weight, and as `own_rewards`.
    """
    rewards = own_rewards(given)
    for reward in rewards:
        if reward.weight != 1:
            raise UsageError(
                f"reward={reward.source!r} has the weight {reward.weight:g}, and each function is measured by itself; "
                "leave it out"
            )
    return rewards


def columns_of(problem: Problem) -> dict[str, Any]:
    """What functions get to know of a problem."""
    return dataclasses.asdict(problem)


def score(
    rewards: Sequence[OwnReward], columns: Sequence[Columns], completions: Sequence[str], *, failure: float = 0.0
) -> list[Scores]:
    """Call the functions on some completions.

    Each is called once with all completions. If it raises, it is called on each apart, and only those on which it
    raises again have failed. A value that is no finite number is a failure too. A warning names the first of them.

    Args:
        rewards: The functions.
        columns: Columns of the completions' problems; ``question`` is the prompt.
        completions: Their texts.
        failure: Value of a term whose function failed.

    Raises:
        UsageError: If a function does not return one value per completion.
    """
    scores = [Scores({}, {}) for _ in completions]
    for reward in rewards if completions else ():
        for one, value in zip(scores, _values(reward, columns, completions), strict=True):
            if isinstance(value, Exception):
                one.faults[reward.name] = one_line(f"{type(value).__name__}: {value}")[:200]
                one.terms[reward.name] = failure
            elif value is not None:
                one.terms[reward.name] = value
        _warn(reward, columns, completions, scores, failure)
    return scores


def source_hash(rewards: Sequence[OwnReward]) -> str:
    """Hash of the files that hold the functions."""
    paths = [reward.source.rpartition(":")[0] for reward in rewards if reward.source]
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in paths)).hexdigest()


def _own_reward(given: Any, modules: dict[Path, Any], functions: Mapping[str, Callable[..., Any]]) -> OwnReward:
    """One function; ``modules`` keeps the files that were run."""
    if isinstance(given, OwnReward):
        return given
    if not isinstance(given, str):
        return OwnReward(given)
    file, _, end = given.rpartition(":")
    name, equals, weight = end.partition("=")
    try:
        number = float(weight) if equals else 1.0
    except ValueError:
        raise UsageError(f"reward={shown(given)} has no number as its weight; give {FORM}") from None
    if not file and name in functions:
        return OwnReward(functions[name], name, number)
    if not file.endswith(".py") or not name:
        raise UsageError(f"reward={shown(given)} names no function; give {FORM}, or in Python the function")
    path = Path(file)
    if path not in modules:
        modules[path] = _run_file(path)
    function = getattr(modules[path], name, None)
    if not callable(function):
        raise UsageError(f"{path} holds no function {name!r}; give {FORM}")
    return OwnReward(function, name, number, source=f"{file}:{name}")


def _run_file(path: Path) -> Any:
    """The module that a file of the user's holds."""
    if not path.is_file():
        raise MissingError(f"reward file {str(path)!r} does not exist; give {FORM}")
    name = f"ollm_rl_reward_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{path} cannot be run ({type(error).__name__}: {one_line(error)}); correct it") from error
    return module


def _values(
    reward: OwnReward, columns: Sequence[Columns], completions: Sequence[str]
) -> list[float | None | Exception]:
    """A function's value for each completion, or the exception that it raised."""
    (together,) = _outcomes(reward, [(columns, completions)])
    if not isinstance(together, Exception):
        return [_number(value) for value in _listed(reward, together, len(completions))]
    apart = _outcomes(reward, [([columns[i]], [completions[i]]) for i in range(len(completions))])
    return [one if isinstance(one, Exception) else _number(_listed(reward, one, 1)[0]) for one in apart]


def _outcomes(reward: OwnReward, calls: Sequence[tuple[Sequence[Columns], Sequence[str]]]) -> list[Any]:
    """Results of calls of a function, or the exceptions that they raised; those of an async one run side by side."""
    outcomes: list[Any] = []
    for columns, completions in calls:
        shared = [name for name in columns[0] if all(name in one for one in columns)]
        lists = {name: [one[name] for one in columns] for name in shared}
        prompts = [one["question"] for one in columns]
        try:
            outcomes.append(reward.function(prompts=prompts, completions=list(completions), **lists))
        except MemoryError:
            raise
        except Exception as error:
            outcomes.append(error)
    waiting = [index for index, outcome in enumerate(outcomes) if inspect.isawaitable(outcome)]
    if waiting:

        async def gathered() -> list[Any]:
            return await asyncio.gather(*(outcomes[index] for index in waiting), return_exceptions=True)

        with ThreadPoolExecutor(1) as thread:  # a notebook's thread runs a loop already
            for index, outcome in zip(waiting, thread.submit(asyncio.run, gathered()).result(), strict=True):
                outcomes[index] = outcome
    return outcomes


def _listed(reward: OwnReward, result: Any, count: int) -> list[Any]:
    listed = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(listed, Sequence) or isinstance(listed, str) or len(listed) != count:
        raise UsageError(
            f"reward {reward.name} returned {shown(listed)} for {count} completions; return a list with a number each"
        )
    return list(listed)


def _number(value: Any) -> float | None | Exception:
    if value is None:
        return None
    with suppress(ValueError, RuntimeError):  # of an array of several numbers
        value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > LARGEST:
        return ValueError(f"returned {shown(value)}, which is no finite number")
    return float(value)


def _warn(
    reward: OwnReward, columns: Sequence[Columns], completions: Sequence[str], scores: Sequence[Scores], failure: float
) -> None:
    failed = [index for index, one in enumerate(scores) if reward.name in one.faults]
    if failed:
        first = failed[0]
        end = " ".join(completions[first][-END:].split())
        warnings.warn(
            f"reward {reward.name} failed on {len(failed)} of {len(scores)} completions, first on that of problem "
            f"{columns[first].get('id')!r} ({scores[first].faults[reward.name]}): ...{end!r}; each counts as "
            f"{failure:g}",
            RunWarning,
            stacklevel=3,
        )
