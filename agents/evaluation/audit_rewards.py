"""The audit of rewards of one's own: what a run recorded beside what the functions say now."""

import math
from collections.abc import Sequence

from ollm_rl.agents.completions import Row
from ollm_rl.envs.own_rewards import OwnReward, score


def audit_rewards(rows: Sequence[Row], rewards: Sequence[OwnReward]) -> dict[str, dict[str, float]]:
    """Call reward functions again on a run's completions.

    Args:
        rows: As for `audit`. Where the run recorded the columns of its problems, the functions get them; otherwise only
            ``id``, ``question`` and ``answer``, so that one that needs more fails.
        rewards: The functions.

    Returns:
        By name of a function: ``mean`` of its values (NaN if it has none), ``failures``, on how many completions it
        failed, ``recorded``, how many values the run has, and ``different``, how many of these are others now.
    """
    columns = [row.get("columns", {"id": row.get("id"), **{n: row[n] for n in ("question", "answer")}}) for row in rows]
    scores = score(rewards, columns, [row["completion"] for row in rows], failure=math.nan)
    result = {}
    for name in (reward.name for reward in rewards):
        now = [None if name in one.faults else one.terms.get(name) for one in scores]
        known = [value for value in now if value is not None]
        before = [row.get("terms", {}).get(name) for row in rows]
        both = [(old, new) for old, new in zip(before, now, strict=True) if old is not None]
        result[name] = {
            "mean": sum(known) / len(known) if known else math.nan,
            "failures": sum(name in one.faults for one in scores),
            "recorded": len(both),
            "different": sum(new is None or not math.isclose(old, new, abs_tol=1e-9) for old, new in both),
        }
    return result
