"""The problems that a run is trained and evaluated on."""

from ollm_rl.agents.config import RLConfig
from ollm_rl.errors import UsageError
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.sources import load_problems

FILES = ("jsonl:", "parquet:")  # sources without splits


def training_problems(config: RLConfig) -> list[Problem]:
    """The problems that a run is trained on."""
    split = config.split or "train"
    return load_problems(config.data, split=split, columns=config.columns, limit=config.limit, seed=config.seed)


def evaluation_problems(config: RLConfig) -> list[Problem]:
    """The problems on which a run is evaluated; none without ``eval_every``.

    Raises:
        UsageError: If they would be the training problems, or no evaluation would be due before the run ends.
    """
    if config.eval_every is None:
        return []
    if config.eval_every > (episodes := config.iterations * config.episodes):
        raise UsageError(
            f"eval_every={config.eval_every} is more than the {episodes} episodes of the run ({config.iterations} "
            f"iterations of {config.episodes}), so nothing would be evaluated; lower it"
        )
    split = config.eval_split or "validation"
    if config.eval_data is None:
        refuse_training_problems(config, split, f"eval_every={config.eval_every}")
    columns = config.columns if config.eval_data is None else config.eval_columns
    source = config.eval_data or config.data
    return load_problems(source, split=split, columns=columns, limit=config.eval_limit, seed=config.seed)


def refuse_training_problems(config: RLConfig, split: str, what: str) -> None:
    """Refuse an evaluation on a split of a run's own ``data`` if these are the problems that it is trained on.

    Args:
        config: Settings of the run.
        split: The split to evaluate on.
        what: What would evaluate, for the message.

    Raises:
        UsageError: If they are.
    """
    if config.data.startswith(FILES) or split == (config.split or "train"):
        raise UsageError(f"{what} would evaluate on the training problems; give eval_data")
