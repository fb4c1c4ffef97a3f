"""One record of a completion, for training, evaluation and search alike: what was written and whether it is right."""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ollm_rl.answers.pool import Verdict, VerifierPool
from ollm_rl.envs.own_rewards import OwnReward, columns_of, score
from ollm_rl.envs.rewards import reward_terms, total
from ollm_rl.errors import MissingError
from ollm_rl.files.records import Entries, read_object, read_rows
from ollm_rl.metrics.degenerate import FLAGS
from ollm_rl.metrics.language import Switching
from ollm_rl.metrics.measuring import Judged, Measured, MeasuringPool, Text
from ollm_rl.metrics.rates import share_switched
from ollm_rl.problems.problem import Problem
from ollm_rl.runs import write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # more than a second, for a type

COMPLETIONS_FOLDER = "completions"
READ: Entries = {"question": str, "answer": str, "completion": str, "correct": bool}  # what readers of rows rely on
GIVE = "give the folder of an ollm-rl train, or a file that ollm-rl eval --out wrote"

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One completion of a problem.

    Attributes:
        problem: The problem that it answers.
        text: What was written, without special tokens.
        tokens: Its length in tokens, the end of text included.
        terminated: Whether it ended by itself, not at the token limit.
        verdict: Verdict on its answer.
        reward: In training, the weighted sum of ``terms``.
        terms: In training, the reward's terms by name, unweighted; in evaluation, those of one's own.
        faults: By name of a reward function of one's own that failed on it: why.
        own: Whether reward functions of one's own were called on it.
        log_prob: In search, its log-probability in nats at temperature 1, options added up by token.
        value: In search, the value head's estimate at its last h_t.
        tokens_spent: In search, tokens generated for its problem until it was finished, its own included.
        measured: If it has been measured already.
    """

    problem: Problem
    text: str
    tokens: int
    terminated: bool
    verdict: Verdict
    reward: float | None = None
    terms: dict[str, float] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    own: bool = False
    log_prob: float | None = None
    value: float | None = None
    tokens_spent: int | None = None
    measured: Measured | None = None

    @property
    def switching(self) -> Switching:
        """As in `Measured`."""
        return self._measured.switching

    @property
    def flags(self) -> frozenset[str]:
        """As in `Measured`."""
        return self._measured.flags

    @cached_property
    def _measured(self) -> Measured:
        return self.measured or Measured.of(self.problem.question, self.text, terminated=self.terminated)

    def row(self) -> Row:
        """The record as it is kept in files; what was not measured is left out."""
        optional = {name: getattr(self, name) for name in ("reward", "log_prob", "tokens_spent")}
        columns = {"columns": columns_of(self.problem)} if self.own else {}  # with which an audit calls the functions
        return {
            "id": self.problem.id,
            "question": self.problem.question,
            "answer": self.problem.answer,
            "completion": self.text,
            "tokens": self.tokens,
            "terminated": self.terminated,
            "extracted": self.verdict.extracted,
            "extracted_by": self.verdict.method,
            "correct": self.verdict.correct,
            "status": self.verdict.status,
            "switched": self.switching.switched,
            "words": self.switching.words,
            "switches": self.switching.switches,
            "flags": sorted(self.flags),
            **{name: value for name, value in optional.items() if value is not None},
            **({"terms": self.terms} if self.terms else {}),
            **({"reward_faults": self.faults} if self.faults else {}),
            **columns,
        }

    @classmethod
    def from_row(cls, row: Row, problem: Problem) -> "Completion":
        """The record of an evaluation's row, which answers this problem."""
        verdict = Verdict(row["correct"], row["extracted"], row["extracted_by"], row["status"])
        written = {name: row[name] for name in ("tokens", "terminated")}
        own = {"terms": row.get("terms", {}), "faults": row.get("reward_faults", {}), "own": "columns" in row}
        return cls(problem=problem, text=row["completion"], verdict=verdict, **written, **own)


class Checks:
    """The checks and measurements of one rollout's completions, made while decoding continues.

    Args:
        problems: One per episode.
        tokenizer: Tokenizer of the policy's backbone.
        end_tokens: Each ends an episode.
        pool: Runs the slow checks.
        measuring: Measures, and checks what is quick; without it this process does, and measures in `measure`.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        tokenizer: "PreTrainedTokenizerBase",
        end_tokens: Sequence[int],
        pool: VerifierPool,
        measuring: MeasuringPool | None = None,
    ) -> None:
        self.problems, self.tokenizer, self.end_tokens = problems, tokenizer, end_tokens
        self.pool, self.measuring = pool, measuring
        self.seconds = 0.0  # that the rollout waited for checks
        self._begun: dict[int, tuple[str, list[int]]] = {}
        self._verdicts: dict[int, Verdict | Future[Verdict]] = {}
        self._measured: dict[int, Measured] = {}
        self._unmeasured: deque[int] = deque()
        self._sent: deque[tuple[list[int], Future[list[Judged]]]] = deque()  # to other processes

    def begin(self, episodes: list[int], tokens: list[list[int]]) -> None:
        """Check and measure ended episodes; what takes time goes on while other episodes are decoded."""
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        started = time.perf_counter()
        self._begun.update(zip(episodes, zip(texts, tokens, strict=True), strict=True))
        if self.measuring is None:
            for episode, text in zip(episodes, texts, strict=True):
                self._verdicts[episode] = self.pool.submit(text, self.problems[episode].answer)
            self._unmeasured += episodes
        else:
            self._sent.append((episodes, self.measuring.submit(list(map(self._text, episodes)))))
            self._take_judged(wait=False)
        self.seconds += time.perf_counter() - started

    def _take_judged(self, *, wait: bool) -> None:
        """Take what the other processes have done so far, or all; slow checks begin then."""
        while self._sent and (wait or self._sent[0][1].done()):
            episodes, sent = self._sent.popleft()
            for episode, (measured, verdict) in zip(episodes, sent.result(), strict=True):
                self._measured[episode] = measured
                self._verdicts[episode] = verdict if isinstance(verdict, Verdict) else self.pool.ask(verdict)

    def measure(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Measure completions of ended episodes in this process, all or until it is ``enough``."""
        while self._unmeasured and not enough():
            episode = self._unmeasured.popleft()
            text = self._text(episode)
            self._measured[episode] = Measured.of(text.question, text.completion, terminated=text.terminated)

    def _text(self, episode: int) -> Text:
        problem, (text, ids) = self.problems[episode], self._begun[episode]
        return Text(problem.question, problem.answer, text, ids[-1] in self.end_tokens)

    def finish(self) -> list[Completion]:
        """Wait for all that is not done; returns the completions in the order of the problems."""
        self.measure()
        started = time.perf_counter()
        self._take_judged(wait=True)
        verdicts = [self._verdicts[episode] for episode in range(len(self.problems))]
        judged = [one if isinstance(one, Verdict) else one.result() for one in verdicts]
        self.seconds += time.perf_counter() - started
        begun = (self._begun[episode] for episode in range(len(self.problems)))
        return [
            Completion(
                problem=problem,
                text=text,
                tokens=len(ids),
                terminated=ids[-1] in self.end_tokens,
                verdict=verdict,
                measured=self._measured[episode],
            )
            for episode, (problem, (text, ids), verdict) in enumerate(zip(self.problems, begun, judged, strict=True))
        ]


def rewarded(
    completion: Completion, weights: Mapping[str, float], *, max_tokens: int, failure: float = 0.0
) -> Completion:
    """The completion with its reward and the terms; see `reward_terms`."""
    terms = reward_terms(
        completion.problem.question,
        completion.text,
        completion.verdict,
        tokens=completion.tokens,
        max_tokens=max_tokens,
        weights=weights,
        failure=failure,
        language=float(not completion.switching.switched) if weights.get("language") else None,
    )
    return replace(completion, reward=total(terms, weights), terms=terms)


def own_rewarded(
    completions: Sequence[Completion], rewards: Sequence[OwnReward], *, failure: float = 0.0
) -> list[Completion]:
    """The completions with the terms of functions of one's own, which are added to a reward if there is one.

    Args:
        completions: All that the functions shall see at once.
        rewards: The functions.
        failure: Value of a term whose function failed.

    Raises:
        UsageError: As in `score`.
    """
    if not rewards:
        return list(completions)
    weights = {one.name: one.weight for one in rewards}
    columns, texts = [columns_of(one.problem) for one in completions], [one.text for one in completions]
    return [
        replace(
            one,
            reward=None if one.reward is None else one.reward + total(own.terms, weights),
            terms={**one.terms, **own.terms},
            faults=own.faults,
            own=True,
        )
        for one, own in zip(completions, score(rewards, columns, texts, failure=failure), strict=True)
    ]


def mean_terms(completions: Sequence[Completion]) -> dict[str, float]:
    """Mean of every term of the reward over the completions that have it, as ``reward_NAME``.

    With functions of one's own also ``reward_failures``, the number of completions on which one of them failed.
    """
    names = dict.fromkeys(name for one in completions for name in one.terms)
    values = {name: [one.terms[name] for one in completions if name in one.terms] for name in names}
    means = {f"reward_{name}": sum(each) / len(each) for name, each in values.items()}
    if not any(one.own for one in completions):
        return means
    return means | {"reward_failures": float(sum(bool(one.faults) for one in completions))}


def rates(completions: Sequence[Completion]) -> dict[str, float]:
    """What is measured of completions, at least one, beside their accuracy.

    Returns:
        ``language_switching_rate``, the share of those whose prompt's language is known, and
        ``unknown_language_rate``, the share of the others; ``degeneracy_rate`` and the share of each flag of
        `degeneracy`, ``loop_rate`` and so on; ``switches_per_1000_words`` of all words together;
        ``verifier_failures``, the number of checks that broke, which are neither right nor wrong; and
        ``completion_tokens``, the mean length.
    """
    count = len(completions)
    words = sum(one.switching.words for one in completions)
    return {
        "language_switching_rate": share_switched([one.switching.switched for one in completions]),
        "unknown_language_rate": sum(one.switching.switched is None for one in completions) / count,
        "switches_per_1000_words": 1000 * sum(one.switching.switches for one in completions) / max(1, words),
        "degeneracy_rate": sum(bool(one.flags) for one in completions) / count,
        **{f"{flag}_rate": sum(flag in one.flags for one in completions) / count for flag in FLAGS},
        "verifier_failures": float(sum(one.verdict.failed for one in completions)),
        "completion_tokens": sum(one.tokens for one in completions) / count,
    }


def training_metrics(completions: Sequence[Completion]) -> dict[str, float]:
    """Over an iteration's completions: mean and spread of the reward, means of its terms, and the rates."""
    measured = rates(completions)
    logged = ("verifier_failures", "completion_tokens", "language_switching_rate", "degeneracy_rate")
    rewards = [one.reward or 0.0 for one in completions]
    return {
        "reward": sum(rewards) / len(rewards),
        "reward_spread": float(np.std(rewards)),
        **mean_terms(completions),
        **{name: measured[name] for name in logged},
    }


def write_completions(run: Path, iteration: int, completions: Sequence[Completion]) -> None:
    """Save an iteration's completions, one file per iteration: a resumed run overwrites what a kill undid."""
    rows = ({"iteration": iteration, **completion.row()} for completion in completions)
    write_atomic(iteration_file(run, iteration), "".join(json.dumps(row) + "\n" for row in rows))


def read_completions(path: Path) -> list[Row]:
    """Rows of a training run's completions, or of a result file of ``ollm-rl eval``, in their order.

    Raises:
        MissingError: If there are none.
        DamagedError: If a file is broken.
    """
    if path.is_file() and path.suffix == ".json":
        rows: list[Row] = read_object(path, {"completions": [READ]}, remedy=GIVE)["completions"]
        if rows:
            return rows
    files = sorted((path / COMPLETIONS_FOLDER).glob("*.jsonl"))
    if not files:
        raise MissingError(f"{path} holds no completions; {GIVE}")
    return [row for file in files for row in _read_iteration(file)]


def last_completions(run: Path) -> list[Row]:
    """Rows of a training run's last iteration; empty if it kept none.

    Raises:
        DamagedError: If the file is broken.
    """
    files = sorted((run / COMPLETIONS_FOLDER).glob("*.jsonl"))
    return _read_iteration(files[-1]) if files else []


def iteration_completions(run: Path, iteration: int) -> list[Row]:
    """Rows of one iteration of a training run; empty if it did not keep them.

    Raises:
        DamagedError: If the file is broken.
    """
    path = iteration_file(run, iteration)
    return _read_iteration(path) if path.exists() else []


def iteration_file(run: Path, iteration: int) -> Path:
    """The file of an iteration's completions."""
    return run / COMPLETIONS_FOLDER / f"{iteration:06d}.jsonl"


def _read_iteration(file: Path) -> list[Row]:
    return read_rows(file, {"iteration": int, **READ}, remedy="copy it again, or delete it")
