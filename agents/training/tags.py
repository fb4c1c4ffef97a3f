"""TensorBoard names of our metrics, grouped as in stable-baselines3."""

TIME = ("iteration", "episodes", "episodes_per_second", "worker_restarts", "timesteps")
UPDATE = (
    "policy_loss",
    "value_loss",
    "loss",
    "entropy",
    "approx_kl",
    "clip_fraction",
    "kl",
    "ent_coef",
    "learning_rate",
)


def tag(name: str) -> str:
    """``eval/accuracy`` for ``eval_accuracy``, ``time/seconds``, ``train/entropy``, ``rollout/reward`` and so on."""
    if name.startswith("eval_"):
        return f"eval/{name.removeprefix('eval_')}"
    if name.startswith("seconds") or name in TIME:
        return f"time/{name}"
    return f"train/{name}" if name in UPDATE else f"rollout/{name}"
