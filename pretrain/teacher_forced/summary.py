"""From scores at positions to a teacher-forced comparison: shares, means and 95 % bootstrap intervals over problems.

Letters: N positions of a problem, P problems, M positions of all problems.
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
    """Sums over the positions of one problem, with the numbers of its tokens and answers (0 or 1).

    Args:
        scores: (N,) each; "listed" are not summed.
        answer: Positions of the final answer's tokens; an answer that is empty or cut off does not count.
    """
    sums = {key: float(values.sum()) for key, values in scores.items() if key[0] != "listed"}
    num_tokens = len(scores["backbone", "right"])
    counts = bool(answer) and max(answer) < num_tokens
    sums["problem", "tokens"], sums["problem", "answers"] = float(num_tokens), float(counts)
    for column in COLUMNS:
        if (column, "right") in scores:
            sums[column, "answer_correct"] = float(counts and scores[column, "right"][list(answer)].all())
    return sums


def summarise(
    sums: Sequence[dict[Key, float]], entropies: np.ndarray, top_two: np.ndarray, *, seed: int
) -> dict[str, Any]:
    """The teacher-forced comparison of P problems.

    Every ``[value, low, high]`` is a share or mean with its 95 % bootstrap interval over problems, in which all tokens
    weigh alike; None where nothing counts.

    Args:
        sums: Of each problem, by ``problem_sums``.
        entropies: The backbone's, in nats, at all positions, (M,).
        top_two: Probability of its two most probable tokens, (M,).
        seed: Of the bootstrap.

    Returns:
        ``columns``: by column ``token_accuracy``, ``nll`` (nats a token), ``answer_correct`` (share of the
        ``num_answers`` problems with a stated answer in which every token of the answer is right, the true tokens
        before it given) and, of ``oracle`` and ``encoder``, what ``_choice`` says.
        ``oracle_gain``, ``nll_gain``: the oracle's token accuracy minus the backbone's, and the backbone's NLL minus
        the oracle's.
        ``options`` and ``ambiguity``: what ``_options`` and ``_ambiguity`` say.
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
    """What it takes to name this column's decisions, and whether that is well spent.

    - ``information``: nats a token that the decisions reveal, given h_t, to one who knows the policy.
    - ``decision_nll``: NLL of the true token once the decision is known (``forced_scores.revealed``), nats a token.
    - ``gain_per_nat``: (the backbone's NLL - ``decision_nll``) / ``information``. At 1 the true tokens get one nat
      cheaper for each nat revealed, which is what spelling out the true token itself would do: the choice is no better
      than a leak of the answer. Below 1 it is wasteful, a worse way to tell the token. Above 1 can only be what the
      mixture of the options predicts better than the backbone without being told anything.
    """
    information, nll = totals[column, "information"], totals[column, "decision_nll"]
    return {
        "information": _interval(information, totals["problem", "tokens"]),
        "decision_nll": _interval(nll, totals["problem", "tokens"]),
        "gain_per_nat": _interval(totals["backbone", "nll"] - nll, information),
    }


def _options(totals: Totals) -> dict[str, Interval | None]:
    """Of the options themselves.

    ``distinct_tokens`` (mean number among the options), ``live_share`` (of the positions where options differ),
    ``mutual_information`` I(z; x | h) in nats per token, and ``mode_coverage_live`` and ``mode_coverage_first``, as
    ``option_diagnostics`` defines them.
    """
    tokens = totals["problem", "tokens"]
    return {
        "distinct_tokens": _interval(totals["options", "distinct"], tokens),
        "live_share": _interval(totals["options", "live"], tokens),
        "mutual_information": _interval(totals["options", "mutual_information"], tokens),
        "mode_coverage_live": _interval(totals["live_modes", "offered"], totals["live_modes", "all"]),
        "mode_coverage_first": _interval(totals["first_modes", "offered"], totals["first_modes", "all"]),
    }


def _ambiguity(totals: Totals, entropies: np.ndarray, top_two: np.ndarray) -> dict[str, Any]:
    """Of the backbone (OLLM, App. B).

    ``deterministic`` and ``ambiguous`` (shares of positions whose entropy is below DETERMINISTIC and above AMBIGUOUS),
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
    """Every sum's total over the P problems, then over each of RESAMPLES draws of P: (1 + RESAMPLES,)."""
    matrix, num_problems = np.array([list(row.values()) for row in sums]), len(sums)
    generator = numpy_generator(seed, Purpose.TEACHER_FORCED)
    drawn = (generator.integers(num_problems, size=num_problems) for _ in range(RESAMPLES))
    resampled = [np.bincount(indices, minlength=num_problems) @ matrix for indices in drawn]
    return dict(zip(sums[0], np.stack([matrix.sum(0), *resampled], 1), strict=True))


def _interval(numerators: np.ndarray, denominators: np.ndarray) -> Interval | None:
    """The first ratio, with the 95 % interval of the others; None if there is nothing to divide by."""
    if not denominators[0] > 0:
        return None
    kept = denominators > 0  # a draw may hold no problem that counts
    ratios = numerators[kept] / denominators[kept]
    return [float(ratios[0]), *(float(end) for end in np.quantile(ratios[1:], [0.025, 0.975]))]


def _answers_correct(sums: Sequence[dict[Key, float]], column: str, seed: int) -> Interval | None:
    correct = [row[column, "answer_correct"] for row in sums if row["problem", "answers"]]
    return [float(np.mean(correct)), *bootstrap_interval(correct, seed=seed)] if correct else None
