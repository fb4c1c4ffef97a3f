"""Model and problems of trials, checked once in this process, before Ray starts and every trial fails alike."""

from collections.abc import Iterable
from pathlib import Path

import torch

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.loading import new_policy
from ollm_rl.agents.training.problems import evaluation_problems, training_problems
from ollm_rl.backbones.loading import context_length
from ollm_rl.devices import resolve_device
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.prompts import encode_prompts

# Settings that a run's model and problems depend on.
INPUTS = (
    "agent",
    "model",
    "action_space",
    "policy",
    "dtype",
    "device",
    "data",
    "split",
    "columns",
    "limit",
    "system_prompt",
    "prompt_template",
    "max_new_tokens",
    "eval_every",
    "eval_data",
    "eval_split",
    "eval_columns",
    "eval_limit",
)


def check_inputs(folder: Path, configs: Iterable[RLConfig]) -> None:
    """Load the model and the problems of every run, equal ones once; nothing if they were checked before.

    Args:
        folder: Folder of the sweep or comparison, which holds ``run.json`` once it has begun.
        configs: Settings of the runs.

    Raises:
        UsageError: If a model, a data set or a device is missing or does not fit; the message is the run's own.
    """
    if (folder / "run.json").exists():
        return
    for config in {tuple(getattr(each, name) for name in INPUTS): each for each in configs}.values():
        resolve_device(config.device)
        _check_model(config, [*training_problems(config), *evaluation_problems(config)])


def _check_model(config: RLConfig, problems: list[Problem]) -> None:
    """Load the model on the CPU, where there is most memory, and see whether the prompts fit."""
    policy, tokenizer = new_policy(config, torch.device("cpu"))
    context = context_length(policy.backbone)
    encode_prompts(problems, tokenizer, max_length=context, max_new_tokens=config.max_new_tokens)
