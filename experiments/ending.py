"""What the command line says when the demo, a sweep or a comparison ends."""

import json
from pathlib import Path

from ollm_rl.experiments.config import CompareConfig, DemoConfig, SweepConfig
from ollm_rl.report.ending import counted, ending, opening


def demo_ending(page: Path, config: DemoConfig) -> str:
    """Accuracy of every method, where the report lies, and how it is opened."""
    rows = json.loads((config.out / "summary.json").read_text())["methods"]
    return ending(
        "accuracy: " + ", ".join(f"{row['method']} {row['accuracy']:.1%}" for row in rows), page, opening(page)
    )


def sweep_ending(page: Path, config: SweepConfig) -> str:
    """The best setting, where the report lies, and how it is opened."""
    import pandas as pd  # with Ray, which the other commands do not need

    from ollm_rl.experiments.sweep import setting_table

    ranked = setting_table(pd.read_csv(config.out / "table.csv"), config.metric, config.mode)
    best = ranked.iloc[0]
    return ending(f"best setting: {best['setting']} ({config.metric} {best.iloc[1]:.3f})", page, opening(page))


def compare_ending(page: Path, config: CompareConfig) -> str:
    """What was compared, where the report lies, and how it is opened."""
    return ending(
        f"{counted(len(config.methods), 'method')} on {counted(len(config.seeds), 'fresh seed')}", page, opening(page)
    )
