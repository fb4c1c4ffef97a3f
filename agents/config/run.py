"""What a run is: its folder, model, problems, evaluations and workers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval

from ollm_rl.settings import Count, CountOrZero, Seed, Settings, Share, own_fields, refuse_changed


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """The run."""

    out: Path
    """Folder of the run: checkpoints, metrics, TensorBoard files. The same command resumes the run."""
    model: str
    """Folder or hub id of an option plug-in. Over tokens its backbone is trained; a backbone's name works too."""
    agent: Literal["ollm-rl", "sb3-ppo", "sb3-a2c", "sb3-dqn", "sb3-recurrent-ppo"] = "ollm-rl"
    """Our agent (see algorithm), or an agent of stable-baselines3 or sb3-contrib over options."""
    action_space: Literal["options", "tokens"] = "options"
    """Options: a policy over the K options on frozen hidden states. Tokens: a LoRA on the backbone."""
    algorithm: Literal["ppo", "reinforce"] = "reinforce"
    """PPO: clipped ratio, GAE with a value head. REINFORCE: the whole reward minus a baseline."""
    iterations: Count = 12
    """Number of iterations, each with a rollout and an update. A finished run with more of them resumes."""
    keep_checkpoints: Count = 2
    """Number of latest checkpoints to keep. The best one is kept too: that with the highest evaluated accuracy, or with
    the highest reward if nothing is evaluated."""
    seed: Seed = 0
    """Seed of all random streams. Runs with equal seeds see the same prompts in the same order."""


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """The problems."""

    data: str = "arith"
    """Problems: arith, rg:TASK, jsonl:PATH, parquet:PATH or hf:ID."""
    split: str | None = None
    """Split of arith, rg: and hf: sources; train if left out."""
    columns: str | None = None
    """Names of the columns, where they are not known ones: question=NAME,answer=NAME."""
    limit: Count | None = None
    """Use only N problems; of files and hf: a sample drawn with the seed. All if left out."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """Evaluation while training."""

    eval_every: Count | None = None
    """Evaluate with greedy decoding every N episodes; never if left out."""
    eval_data: str | None = None
    """Problems to evaluate on, in the format of data; data itself if left out."""
    eval_split: str | None = None
    """Split to evaluate on, of arith, rg: and hf: sources; validation if left out."""
    eval_columns: str | None = None
    """Names of the columns of eval_data, as for data."""
    eval_limit: Count = 256
    """Evaluate on only N problems; of files and hf: a sample drawn with the seed."""
    stop_at: Annotated[float, Interval(gt=0, le=1)] | None = None
    """Stop early once an evaluation reaches this accuracy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_every is None:
            names = [field.name for field in own_fields(EvaluationSettings) if field.name != "eval_every"]
            refuse_changed(self, names, "without evaluations (eval_every)")
        if self.eval_data is None:
            refuse_changed(self, ["eval_columns"], "without eval_data")


@dataclass(frozen=True, kw_only=True)
class RaySettings(Settings):
    """Ray workers."""

    workers: CountOrZero = 0
    """Ray workers that generate the rollouts, each with an engine and a CPU core. 0: this process generates them."""
    gpus_per_worker: Share = 0.0
    """Share of a GPU for each worker, such as 0.5. 0: decode on the CPU."""
    ray_address: str | None = None
    """Ray cluster for the workers, host:port or auto. If left out, one is started on this machine."""
    async_staleness: CountOrZero = 0
    """0: workers wait for the update. N: they do not wait, and rollouts come from weights up to N updates old."""
    worker_timeout: Annotated[float, Interval(gt=0, le=10**6)] = 600.0
    """Seconds that the learner waits for a worker, its start included, before it replaces the worker."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.workers:
            names = [field.name for field in own_fields(RaySettings) if field.name != "workers"]
            refuse_changed(self, names, "without workers")
