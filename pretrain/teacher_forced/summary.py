"""Scores at positions summarised over problems: shares, means and 95 % bootstrap intervals.

Letters: N positions of one problem, P problems, M positions of all problems.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ollm_rl.metrics.statistics import bootstrap_interval
from ollm_rl.streams import Purpose, numpy_generator

COLUMNS = ("backbone", "lora", "oracle", "encoder", "policy", "mixture")
CHOICES = ("oracle", "encoder")  # columns whose choice of an option reveals something
RESAMPLES = 2000
ENTROPY_BIN = 0.1  # nats
MASS_BINS = 20

Key = tuple[str, str]  # column and measure
Totals = dict[Key, np.ndarray]
Interval = list[float]  # value, low, high


def problem_sums(scores: dict[Key, np.ndarray], answer: Sequence[int]) -> dict[Key, float]:
    """Sums over the positions of one problem, with its numbers of tokens and answers (0 or 1).

    Args:
        scores: (N,) each; those of the column "listed" are not summed.
        answer: Positions of the final answer's tokens; an empty or cut-off answer does not count.
    """
    sums = {key: float(values.sum()) for key, values in scores.items() if key[0] != "listed"}
    num_tokens = len(scores["backbone", "right"])
    has_answer = bool(answer) and max(answer) < num_tokens
    sums["problem", "tokens"], sums["problem", "answers"] = float(num_tokens), float(has_answer)
    sums["problem", "count"] = 1.0
    sums["problem", "offered"] = float(scores["oracle", "right"].all())
    for column in COLUMNS:
        if (column, "right") in scores:
            sums[column, "answer_correct"] = float(has_answer and scores[column, "right"][list(answer)].all())
    return sums


def summarise(
    sums: Sequence[dict[Key, float]], entropies: np.ndarray, top_two: np.ndarray, *, seed: int
) -> dict[str, Any]:
    """The teacher-forced comparison of P problems.

    Every ``[value, low, high]`` is a share or mean with its 95 % bootstrap interval over problems; None if nothing
    counts. All tokens have the same weight.

    Args:
        sums: The ``problem_sums`` of each problem.
        entropies: Entropy of the backbone, in nats, at all positions, (M,).
        top_two: Probability of the backbone's two most probable tokens, (M,).
        seed: Seed of the bootstrap.

    Returns:
        ``columns``: by column ``token_accuracy``, ``nll`` (nats per token) and ``answer_correct``, the share of the
        ``num_answers`` problems with a stated answer in which every token of the answer is right given the true tokens
        before it. ``oracle`` and ``encoder`` also have the entries of ``_choice``.
        ``oracle_gain``, ``nll_gain``: the oracle's token accuracy minus the backbone's, and the backbone's NLL minus
        the oracle's.
        ``options`` and ``ambiguity``: the entries of ``_options`` and ``_ambiguity``.
        ``num_problems``, ``num_tokens``, ``num_answers``.
    """
    totals = _resampled_totals(sums, seed)
    tokens = totals["problem", "tokens"]
    columns: dict[str, dict[str, Interval | None]] = {}
    for column in (name for name in COLUMNS if (name, "nll") in totals):
        columns[column] = {
            "token_accuracy": _interval(totals[column, "right"], tokens),
            "nll": _interval(totals[column, "nll"], tokens),
            "answer_correct": _answers_correct(sums, column, seed),
            **(_choice(totals, column) if column in CHOICES else {}),
        }
    return {
        "columns": columns,
        "oracle_gain": _interval(totals["oracle", "right"] - totals["backbone", "right"], tokens),
        "nll_gain": _interval(totals["backbone", "nll"] - totals["oracle", "nll"], tokens),
        "options": _options(totals),
        "ambiguity": _ambiguity(totals, entropies, top_two),
        "num_problems": len(sums),
        "num_tokens": int(tokens[0]),
        "num_answers": int(totals["problem", "answers"][0]),
    }


def _choice(totals: Totals, column: str) -> dict[str, Interval | None]:
    """How much information this column's decisions reveal, and how much NLL each nat of it saves.

    - ``information``: nats per token that the decisions reveal, given h_t and the policy.
    - ``decision_nll``: NLL of the true token once the decision is known (``scores.revealed``), in nats per token.
    - ``gain_per_nat``: (the backbone's NLL - ``decision_nll``) / ``information``. At 1, each revealed nat lowers the
      NLL by one nat, as revealing the true token itself would: the choice is no better than a leak of the answer.
      Below 1 it is worse than a leak. Above 1 is possible only if the mixture of the options predicts better than the
      backbone without any revealed information.
    """
    information, nll = totals[column, "information"], totals[column, "decision_nll"]
    return {
        "information": _interval(information, totals["problem", "tokens"]),
        "decision_nll": _interval(nll, totals["problem", "tokens"]),
        "gain_per_nat": _interval(totals["backbone", "nll"] - nll, information),
    }


def _options(totals: Totals) -> dict[str, Interval | None]:
    """Measures of the options themselves.

    ``distinct_tokens`` (mean number among the options), ``live_share`` (share of positions where options differ),
    ``mutual_information`` I(z; x | h) in nats per token, and ``mode_coverage_live``, ``mode_coverage_first`` and
    ``whole_coverage``, which ``option_diagnostics`` defines.
    """
    tokens = totals["problem", "tokens"]
    return {
        "distinct_tokens": _interval(totals["options", "distinct"], tokens),
        "live_share": _interval(totals["options", "live"], tokens),
        "mutual_information": _interval(totals["options", "mutual_information"], tokens),
        "mode_coverage_live": _interval(totals["live_modes", "offered"], totals["live_modes", "all"]),
        "mode_coverage_first": _interval(totals["first_modes", "offered"], totals["first_modes", "all"]),
        "whole_coverage": _interval(totals["problem", "offered"], totals["problem", "count"]),
    }


def _ambiguity(totals: Totals, entropies: np.ndarray, top_two: np.ndarray) -> dict[str, Any]:
    """Ambiguity of the backbone's next token (OLLM, App. B).

    ``deterministic`` and ``ambiguous`` (shares of positions with entropy below DETERMINISTIC and above AMBIGUOUS),
    ``top_two`` and ``ambiguous_top_two`` (mean probability of the two most probable tokens, at all positions and at
    ambiguous ones), ``entropy_histogram`` and ``top_two_histogram`` (``edges`` and ``counts``).
    """
    tokens, ambiguous = totals["problem", "tokens"], totals["ambiguity", "ambiguous"]
    num_bins = max(1, int(np.ceil(entropies.max() / ENTROPY_BIN)))
    return {
        "deterministic": _interval(totals["ambiguity", "deterministic"], tokens),
        "ambiguous": _interval(ambiguous, tokens),
        "top_two": _interval(totals["ambiguity", "top_two"], tokens),
        "ambiguous_top_two": _interval(totals["ambiguity", "ambiguous_top_two"], ambiguous),
        "entropy_histogram": _histogram(entropies, np.arange(num_bins + 1) * ENTROPY_BIN),
        "top_two_histogram": _histogram(top_two, np.arange(MASS_BINS + 1) / MASS_BINS),
    }


def _histogram(values: np.ndarray, edges: np.ndarray) -> dict[str, list[float]]:
    # Rounding may put a value just outside, such as an entropy of -1e-8.
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
    return {"edges": edges.round(6).tolist(), "counts": counts.tolist()}


def _resampled_totals(sums: Sequence[dict[Key, float]], seed: int) -> Totals:
    """Total of every sum over the P problems, then over each of RESAMPLES draws of P problems: (1 + RESAMPLES,)."""
    matrix, num_problems = np.array([list(row.values()) for row in sums]), len(sums)
    generator = numpy_generator(seed, Purpose.TEACHER_FORCED)
    drawn = (generator.integers(num_problems, size=num_problems) for _ in range(RESAMPLES))
    resampled = [np.bincount(indices, minlength=num_problems) @ matrix for indices in drawn]
    return dict(zip(sums[0], np.stack([matrix.sum(0), *resampled], 1), strict=True))


def _interval(numerators: np.ndarray, denominators: np.ndarray) -> Interval | None:
    """The first ratio, with the 95 % interval of the others; None if there is nothing to divide by."""
    if not denominators[0] > 0:
        return None
    defined = denominators > 0  # a draw may contain no problem that counts
    ratios = numerators[defined] / denominators[defined]
    return [float(ratios[0]), *(float(end) for end in np.quantile(ratios[1:], [0.025, 0.975]))]


def _answers_correct(sums: Sequence[dict[Key, float]], column: str, seed: int) -> Interval | None:
    correct = [row[column, "answer_correct"] for row in sums if row["problem", "answers"]]
    return [float(np.mean(correct)), *bootstrap_interval(correct, seed=seed)] if correct else None
