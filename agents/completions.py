"""What a rollout wrote and whether it is right: checked while decoding goes on, kept for ``ollm-rl audit``."""

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ollm_rl.answers.pool import Verdict, VerifierPool
from ollm_rl.decode.rollout import Rollout
from ollm_rl.envs.rewards import reward_terms, total
from ollm_rl.errors import MissingError
from ollm_rl.metrics.rates import degeneracy_rate, language_switching_rate
from ollm_rl.problems.sources import Problem
from ollm_rl.runs import write_atomic

COMPLETIONS_FOLDER = "completions"


class Checked(NamedTuple):
    """One completion: its problem, text and length in tokens, the verdict, the reward and its terms."""

    problem: Problem
    text: str
    tokens: int
    verdict: Verdict
    reward: float
    terms: dict[str, float]


class Checks:
    """The checks of one rollout's answers.

    Args:
        problems: One an episode.
        tokenizer: Of the backbone that writes.
        pool: Does the checks that take long.
    """

    def __init__(self, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, pool: VerifierPool) -> None:
        self.problems, self.tokenizer, self.pool = problems, tokenizer, pool
        self.seconds = 0.0  # that checking kept the rollout waiting
        self._begun: dict[int, tuple[str, int, Future[Verdict]]] = {}

    def begin(self, episodes: list[int], tokens: list[list[int]]) -> None:
        """Check the answers of episodes that have ended; what takes long goes on beside the others' decoding."""
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        started = time.perf_counter()
        for episode, text, ids in zip(episodes, texts, tokens, strict=True):
            self._begun[episode] = (text, len(ids), self.pool.submit(text, self.problems[episode].answer))
        self.seconds += time.perf_counter() - started

    def finish(self, weights: Mapping[str, float], *, max_tokens: int, failure: float) -> list[Checked]:
        """Wait for the verdicts and reward them, in the order of the problems; see `reward_terms`."""
        started = time.perf_counter()
        verdicts = [self._begun[episode][2].result() for episode in range(len(self.problems))]
        self.seconds += time.perf_counter() - started
        checked = []
        for episode, (problem, verdict) in enumerate(zip(self.problems, verdicts, strict=True)):
            text, tokens, _ = self._begun[episode]
            terms = reward_terms(
                problem.question,
                text,
                verdict,
                tokens=tokens,
                max_tokens=max_tokens,
                weights=weights,
                failure=failure,
            )
            checked.append(Checked(problem, text, tokens, verdict, total(terms, weights), terms))
        return checked


def completion_texts(rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What was written, without special tokens."""
    rows = zip(rollout.tokens.tolist(), rollout.completion_mask.sum(1).tolist(), strict=True)
    texts: list[str] = tokenizer.batch_decode([row[:length] for row, length in rows], skip_special_tokens=True)
    return texts


def checked_metrics(checked: Sequence[Checked], terminated: Sequence[bool]) -> dict[str, float]:
    """Means over episodes: reward and its terms, length, and the rates of what was written."""
    completions = [row.text for row in checked]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    return {
        "reward": mean([row.reward for row in checked]),
        **{f"reward_{name}": mean([row.terms[name] for row in checked]) for name in checked[0].terms},
        "verifier_failures": float(sum(row.verdict.failed for row in checked)),
        "completion_tokens": mean([row.tokens for row in checked]),
        "language_switching_rate": language_switching_rate([row.problem.question for row in checked], completions),
        "degeneracy_rate": degeneracy_rate(completions, terminated),
    }


def write_completions(run: Path, iteration: int, checked: Sequence[Checked]) -> None:
    """Keep an iteration's completions, one file an iteration: what a kill undid is written again, never twice."""
    rows = [
        {
            "iteration": iteration,
            "id": row.problem.id,
            "question": row.problem.question,
            "answer": row.problem.answer,
            "completion": row.text,
            "tokens": row.tokens,
            "correct": row.verdict.correct,
            "status": row.verdict.status,
            "reward": row.reward,
            "terms": row.terms,
        }
        for row in checked
    ]
    path = run / COMPLETIONS_FOLDER / f"{iteration:06d}.jsonl"
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_completions(path: Path) -> list[dict[str, Any]]:
    """Completions of a training run, or of a result file of ``ollm-rl eval``, in their order.

    Raises:
        MissingError: If there are none.
    """
    if path.is_file() and path.suffix == ".json":
        result = json.loads(path.read_text())
        if isinstance(result, dict) and result.get("completions"):
            rows: list[dict[str, Any]] = result["completions"]
            return rows
    files = sorted((path / COMPLETIONS_FOLDER).glob("*.jsonl"))
    if not files:
        raise MissingError(
            f"{path} holds no completions; give the folder of an ollm-rl train, or a file that ollm-rl eval --out wrote"
        )
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]
