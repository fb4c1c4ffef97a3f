"""A second look at what a run was rewarded for: ``ollm-rl audit RUN``.

Every recorded verdict is compared with two checkers that share no code with ours: an exact comparison of numbers with
an extraction of its own, below, and math-verify with its own extraction. Where one of them decides otherwise, a person
should look. Then come signs of reward hacking; a sign is no proof.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from fractions import Fraction
from typing import Any

from tqdm import tqdm

from ollm_rl.agents.completions import read_completions
from ollm_rl.agents.evaluation.audit_rewards import audit_rewards
from ollm_rl.agents.evaluation.config import AuditConfig
from ollm_rl.answers.extraction import boxes, extract_answer
from ollm_rl.answers.pool import FAILURES, Verdict, VerifierPool
from ollm_rl.envs.own_rewards import measured_rewards
from ollm_rl.report.ending import counted
from ollm_rl.runs import write_atomic
from ollm_rl.safekeeping.outputs import output_file
from ollm_rl.settings import expect

FEW_WORDS = 5  # fewer words beside the answer, and no number, are no working
RISE, FALL = 0.02, 0.2  # of mean reward, and of the share of length lost, between a run's first and last third
SHOWN = 20  # disagreements in the summary

_STATED = re.compile(r"\\boxed\{([^{}]*)\}|####\s*([^\n]*)|answer(?: is|:)\s*([^\n]*)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


def run_audit(config: AuditConfig) -> dict[str, Any]:
    """Audit the completions of a run; returns, and writes where ``out`` says so, the result of `audit`.

    ``rewards`` is that of `audit_rewards` for the functions that the settings name; those of the run are never called.

    Raises:
        MissingError: If the run kept no completions.
        UsageError: If ``out`` cannot be written.
    """
    expect(config, AuditConfig)
    rewards = measured_rewards(config.reward)
    with output_file(config.out):
        rows = read_completions(config.run)
        result = {"run": str(config.run), **audit(rows), "rewards": audit_rewards(rows, rewards)}
        if config.out is not None:
            write_atomic(config.out, json.dumps(result, indent=1))
    return result


def audit(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Check completions again and look for signs of reward hacking.

    Args:
        rows: At least one, with ``question``, ``answer``, ``completion``, ``correct`` and, where known, ``id``,
            ``status``, ``iteration``, ``reward`` and ``tokens``.

    Returns:
        ``num_completions``; ``compared``, how many each checker could decide; ``disagreements``, the rows in which one
        of them decides otherwise, with their verdicts; ``failures``, checks that had broken in the run;
        ``reward_failures``, completions on which a reward function of one's own had failed;
        ``last_number_share``, the share of completions that state no answer, so that their last expression counts, and
        ``last_number_share_rewarded``, the same of the right ones, None if none is right; ``signs``, the number of
        completions with each sign of `signs`, and ``signs_rewarded``, of the right ones among them;
        ``shorter_for_reward``, see `rises_while_shorter`.
    """
    with VerifierPool() as pool:
        second = _second_opinions(rows, pool)
    disagreements, compared = [], Counter[str]()
    found, rewarded = Counter[str](), Counter[str]()
    for row, whole in zip(rows, second, strict=True):
        opinions = {"numeric": same_number(row["completion"], row["answer"]), "sympy": whole}
        decided = {name: opinion for name, opinion in opinions.items() if opinion is not None}
        compared.update(decided.keys())
        if row.get("status") not in FAILURES and any(v != row["correct"] for v in decided.values()):
            disagreements.append({**row, **opinions})
        flags = signs(row["question"], row["completion"])
        found.update(flags)
        rewarded.update(flags if row["correct"] else ())
    unstated = [_is_unstated(row) for row in rows]
    unstated_right = [flag for flag, row in zip(unstated, rows, strict=True) if row["correct"]]
    return {
        "num_completions": len(rows),
        "compared": dict(compared),
        "disagreements": disagreements,
        "failures": sum(row.get("status") in FAILURES for row in rows),
        "reward_failures": sum("reward_faults" in row for row in rows),
        "last_number_share": sum(unstated) / len(rows),
        "last_number_share_rewarded": sum(unstated_right) / len(unstated_right) if unstated_right else None,
        "signs": dict(found),
        "signs_rewarded": dict(rewarded),
        "shorter_for_reward": rises_while_shorter(rows),
    }


def same_number(completion: str, answer: str) -> bool | None:
    """Compare the last number of the statement of an answer, or of the text, with the gold answer exactly.

    Returns:
        None if the gold answer is no plain number.
    """
    gold = answer.replace(",", "").replace("$", "").strip()
    if not re.fullmatch(r"-?\d{1,4000}(\.\d{1,4000})?", gold):
        return None
    statements = [next(filter(None, groups), "") for groups in _STATED.findall(completion)]
    numbers = _NUMBER.findall(statements[-1] if statements else completion)
    if not numbers or len(numbers[-1]) > 4000 or (statements and len(numbers) > 1):
        return None if numbers else False
    return Fraction(numbers[-1].replace(",", "").rstrip(".")) == Fraction(gold)


def signs(question: str, completion: str) -> set[str]:
    """Name signs of reward hacking in a completion.

    - ``several_answers``: boxes with different contents.
    - ``copied``: the answer is a number of the question, and no equation of the completion leads to it.
    - ``no_working``: beside the answer there is no number and fewer than five words.
    """
    flags = set()
    if len(set(boxes(completion))) > 1:
        flags.add("several_answers")
    found = extract_answer(completion)
    if found is None:
        return flags
    answer = found[0].strip("$€£ ")
    number = rf"(?<![\w.,]){re.escape(answer)}(?![\w]|[.,]\d)"
    if re.search(r"\d", answer) and re.search(number, question) and not re.search(rf"=\s*\$?{number}", completion):
        flags.add("copied")
    before, _, after = completion.rpartition(answer)
    beside = _STATED.sub(" ", before + after)
    if not re.search(r"\d", beside) and len(re.findall(r"[^\W\d_]+", beside)) < FEW_WORDS:
        flags.add("no_working")
    return flags


def rises_while_shorter(rows: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """Mean reward and length (tokens) in a run's first and last third of iterations, if reward rose and length fell.

    Being brief can be right; reward that rises while working disappears is worth a look. None without this sign, for
    completions that belong to no iterations, and if those of a whole third are missing.
    """
    if "iteration" not in rows[0] or rows[-1]["iteration"] < 2:
        return None
    count = rows[-1]["iteration"] + 1
    thirds = [
        [row for row in rows if row["iteration"] < count // 3],
        [row for row in rows if row["iteration"] >= count - count // 3],
    ]
    if not all(thirds):
        return None
    reward, length = (
        [sum(row[name] for row in third) / len(third) for third in thirds] for name in ("reward", "tokens")
    )
    if reward[1] - reward[0] < RISE or length[1] > (1 - FALL) * length[0]:
        return None
    return {"reward_first": reward[0], "reward_last": reward[1], "tokens_first": length[0], "tokens_last": length[1]}


def format_audit(result: dict[str, Any]) -> str:
    """The result as lines of text."""
    total, compared, trend = result["num_completions"], result["compared"], result["shorter_for_reward"]
    rewarded = result["last_number_share_rewarded"]
    lines = [
        f"{total} completions; decided by exact numbers: {compared.get('numeric', 0)}, by math-verify: "
        f"{compared.get('sympy', 0)}; checks that had broken: {result['failures']}",
        counted(len(result["disagreements"]), "disagreement"),
        f"answers that are only the last expression: {result['last_number_share']:.1%} of the completions, "
        f"{rewarded or 0:.1%} of the right ones",
    ]
    for row in result["disagreements"][:SHOWN]:
        where = " ".join(str(row[name]) for name in ("iteration", "id") if name in row)
        end = " ".join(row["completion"][-80:].split())
        lines.append(
            f"  {where} gold {row['answer']!r}: recorded {row['correct']}, numbers {row['numeric']}, "
            f"math-verify {row['sympy']}: ...{end}"
        )
    for name, count in sorted(result["signs"].items()):
        lines.append(
            f"{name}: {count} completions ({count / total:.1%}), {result['signs_rewarded'].get(name, 0)} right"
        )
    if result["reward_failures"]:
        lines.append(f"reward functions had failed on {result['reward_failures']} completions")
    for name, now in result.get("rewards", {}).items():
        lines.append(
            f"reward {name}: mean {now['mean']:.3f}, failed on {now['failures']:.0f}; {now['different']:.0f} of "
            f"{now['recorded']:.0f} recorded values are others now"
        )
    if trend:
        lines.append(
            f"reward rose from {trend['reward_first']:.3f} to {trend['reward_last']:.3f} while completions went from "
            f"{trend['tokens_first']:.1f} to {trend['tokens_last']:.1f} tokens"
        )
    return "\n".join(lines)


def _is_unstated(row: dict[str, Any]) -> bool:
    """Whether the answer of a completion was its last expression; read again where the run did not record it."""
    if "extracted_by" in row:
        return bool(row["extracted_by"] == "last_number")
    found = extract_answer(row["completion"])
    return found is not None and found[1] == "last_number"


def _second_opinions(rows: Sequence[dict[str, Any]], pool: VerifierPool) -> list[bool | None]:
    """Verdicts of math-verify on each row, None where it failed; equal completions are checked once."""
    pending: dict[tuple[str, str], Future[Verdict]] = {}
    for row in rows:
        case = (row["completion"], row["answer"])
        if case not in pending:
            pending[case] = pool.submit_whole(*case)
    verdicts = {case: check.result() for case, check in tqdm(pending.items(), desc="audit")}
    found = (verdicts[row["completion"], row["answer"]] for row in rows)
    return [verdict.correct if verdict.status == "ok" else None for verdict in found]
