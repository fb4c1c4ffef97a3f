"""Ratios, a table and a plot of the cases of ``decode.py``."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ollm_rl.report.canvas import save_svg


def ratios(cases: list[dict[str, Any]]) -> dict[str, float]:
    """Lowest ratio over all cases of the engine's speed to each other's; for ``generate`` the faster cache counts."""
    lowest: dict[str, float] = {}
    for case in cases:
        speeds = case["tokens_per_second"]
        caches = [speed for name, speed in speeds.items() if name.startswith("hf_generate")]
        others = {name: speed for name, speed in speeds.items() if not name.startswith(("hf_generate", "engine"))}
        if caches:
            others["hf_generate"] = max(caches)
        for name, speed in others.items():
            key = f"engine/{name}"
            lowest[key] = min(lowest.get(key, float("inf")), speeds["engine"] / speed)
    return lowest


def table(cases: list[dict[str, Any]]) -> str:
    """Real tokens per second as a Markdown table."""
    names = list(dict.fromkeys(name for case in cases for name in case["tokens_per_second"]))
    lines = [
        f"| slots | prompt | prompts | episodes | new tokens | {' | '.join(names)} "
        "| engine, without prompts | bound | share of bound | wasted |",
        "|" + "---|" * (9 + len(names)),
    ]
    for case in cases:
        speeds, limit = case["tokens_per_second"], case["bound_tokens_per_second"]
        cells = [f"{speeds[name]:,.0f}" if name in speeds else "–" for name in names]
        decoding = case["tokens"] / (case["tokens"] / speeds["engine"] - case["prefill_seconds"])
        low, high = case["new_tokens"]
        lines.append(
            f"| {case['slots']} | {case['context']:g} | {case['prompts']} | {case['episodes']} | {low}..{high} "
            f"| {' | '.join(cells)} "
            f"| {decoding:,.0f} | {limit:,.0f} | {decoding / limit:.0%} | {case['wasted_share']:.1%} |"
        )
    return "\n".join(lines)


def plot(cases: list[dict[str, Any]], path: Path) -> None:
    """Plot the milliseconds per step of all slots, with the bound, by slots and by context."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axis, varied, fixed in zip(figure.subplots(1, 2), ("slots", "context"), ("context", "slots"), strict=True):
        for value in sorted({case[fixed] for case in cases}):
            rows = sorted((case for case in cases if case[fixed] == value), key=lambda case: float(case[varied]))
            positions = [row[varied] for row in rows]
            (line,) = axis.plot(
                positions,
                [1e3 * row["slots"] / row["tokens_per_second"]["engine"] for row in rows],
                marker="o",
                label=f"{fixed} {value:g}",
            )
            bounds = [1e3 * row["slots"] / row["bound_tokens_per_second"] for row in rows]
            axis.plot(positions, bounds, linestyle="--", color=line.get_color())
        axis.set_xlabel(varied)
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False, fontsize="small")
        axis.set_ylabel("ms per step; dashed: memory traffic")
    save_svg(figure, path)
