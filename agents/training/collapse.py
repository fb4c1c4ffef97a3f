"""Notices a run that can no longer learn."""

from collections.abc import Mapping, Sequence

LAST = 3  # iterations that are looked at together
MIN_ENTROPY = 0.02  # of the first iteration's
MIN_MIXED = 0.03  # share of groups with different rewards
SOLVED = 0.9  # accuracy from which both are no fault


def collapse_warning(history: Sequence[Mapping[str, float]]) -> str | None:
    """One line that says how the run collapsed and what to change; None except at the first iteration that shows it.

    Args:
        history: Metrics of all iterations so far.
    """
    found = _collapse(history)
    return None if found is None or any(_collapse(history[:end]) for end in range(1, len(history))) else found


def _collapse(history: Sequence[Mapping[str, float]]) -> str | None:
    last = history[-LAST:]
    if len(last) < LAST or sum(row["reward_correctness"] for row in last) >= SOLVED * LAST:
        return None
    if not any(row["live_share"] for row in last):  # one option: there was never a choice
        return None
    change = "lower learning_rate, or give kl_coef, say 0.01, or ent_coef, say 0.01"
    entropies = [row["entropy"] for row in last]
    if max(entropies) < MIN_ENTROPY * history[0]["entropy"]:
        return f"the policy hardly chooses any more (entropy {entropies[-1]:.2g} nats at decisions); {change}"
    mixed = sum(row["mixed_groups"] for row in last) / LAST  # NaN without groups
    if mixed < MIN_MIXED:
        return (
            f"only {mixed:.0%} of the groups hold different rewards, so there is little to learn from; {change}, or "
            "raise group_size"
        )
    return None
