"""What an iteration's episodes show, as numbers."""

import torch

from ollm_rl.agents.completions import training_metrics
from ollm_rl.agents.workers.local import Batch


def episode_metrics(batch: Batch, group_size: int) -> dict[str, float]:
    """Metrics of the episodes; the ``group_size`` episodes of a prompt are adjacent."""
    rollout, groups = batch.rollout, batch.rewards.view(-1, group_size)
    correct = torch.tensor([completion.terms["correctness"] for completion in batch.completions]).view(-1, group_size)
    return {
        **training_metrics(batch.completions),
        "live_share": float(rollout.decisions.sum() / rollout.completion_mask.sum()),
        # Not by the standard deviation, which rounding may make larger than 0 for equal rewards.
        "mixed_groups": float((groups.amax(1) > groups.amin(1)).float().mean()) if group_size > 1 else float("nan"),
        "pass_at_group": float((correct.max(1).values > 0.5).float().mean()),
    }
