"""TensorBoard of a run of reinforcement learning: metrics grouped as in stable-baselines3, and some completions."""

from collections.abc import Mapping, Sequence

from ollm_rl.agents.completions import Row, iteration_completions
from ollm_rl.agents.config import RLConfig
from ollm_rl.report.board import Board

AXIS = ("iteration", "episodes")  # over which the others are drawn
TIME = ("episodes_per_second", "worker_restarts", "staleness", "timesteps")
UPDATE = (
    "policy_loss",
    "value_loss",
    "loss",
    "grad_norm",
    "entropy",
    "approx_kl",
    "clip_fraction",
    "kl",
    "ent_coef",
    "kl_coef",
    "learning_rate",
)
TEXTS = 4  # completions per iteration, of different prompts


class RunBoard(Board):
    """The board of a run. The last saved iteration is written again, since a kill may have come before it was written.

    Args:
        config: Settings of the run.
        history: Metrics of the iterations so far.
    """

    def __init__(self, config: RLConfig, history: Sequence[Mapping[str, float]]) -> None:
        done = int(history[-1]["episodes"]) if history else 0
        metrics = ["rollout/reward", *(["eval/accuracy"] if config.eval_every else [])]
        super().__init__(config.out, config, metrics, start=done)
        self.config = config
        for row in history[:-1]:
            self.known(tagged(row), int(row["episodes"]))

    def add_iteration(self, row: Mapping[str, float]) -> None:
        """Write an iteration's metrics and some of its completions."""
        episodes = int(row["episodes"])
        self.add(tagged(row), episodes)
        rows = iteration_completions(self.config.out, int(row["iteration"]))
        for place, completion in enumerate(rows[:: self.config.group_size][:TEXTS]):
            self.add_text(f"completions/{place}", as_text(completion), episodes)


def tagged(row: Mapping[str, float]) -> dict[str, float]:
    """An iteration's metrics by tag."""
    return {tag(name): value for name, value in row.items() if name not in AXIS}


def tag(name: str) -> str:
    """``eval/accuracy`` for ``eval_accuracy``, ``time/seconds``, ``train/entropy``, ``rollout/reward`` and so on."""
    if name.startswith("eval_"):
        return f"eval/{name.removeprefix('eval_')}"
    if name.startswith("seconds") or name in TIME:
        return f"time/{name}"
    return f"train/{name}" if name in UPDATE else f"rollout/{name}"


def as_text(row: Row) -> str:
    """A completion as Markdown: what was asked and written, word by word, and what it earned."""
    verdict = "right" if row["correct"] else "wrong"
    lines = [*row["question"].splitlines(), "", *row["completion"].splitlines()]
    quoted = "\n".join(f"    {line}" for line in lines)  # indented text is shown as it is
    return f"reward {row['reward']:.3f}, {verdict} (answer: {row['answer']})\n\n{quoted}"
