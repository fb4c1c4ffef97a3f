"""Settings of search. Nothing heavy is imported, so that ``ollm-rl --help`` is fast."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ollm_rl.errors import UsageError
from ollm_rl.settings import Coefficient, Count, Machine, PromptSettings, Seed, Settings, Temperature, refuse_changed

SearchMethod = Literal["best-of-n", "beam", "mcts"]
LeafValue = Literal["likelihood", "value_head", "verifier"]
UNUSED = {"best-of-n": ["exploration", "leaves"], "beam": ["exploration", "temperature"], "mcts": ["temperature"]}


@dataclass(frozen=True, kw_only=True)
class SearchSettings(Settings):
    """The search."""

    method: SearchMethod = "mcts"
    """Best-of-n: independent samples. Beam: beams of 1, 2, 4, ... completions. Mcts: tree search with PUCT."""
    budget_tokens: Count = 768
    """Maximum generated tokens per problem, ends of text included; at least max_new_tokens."""
    max_new_tokens: Count = 96
    """Token limit per completion."""
    leaf_value: LeafValue = "likelihood"
    """Value of a leaf of mcts. Likelihood: a rollout's geometric mean probability per decision. Value_head: the
    value head's estimate, without a rollout (PPO runs only). Verifier: whether a rollout is correct; the search then
    knows the reference answer and can report only an oracle."""
    exploration: Coefficient = 1.0
    """Weight of the policy's probabilities in mcts (c of PUCT)."""
    temperature: Temperature = 1.0
    """Sampling temperature of best-of-n."""
    leaves: Count = 1
    """Branches of a tree that are decoded in parallel. More keep the engine busy with few problems, but split a small
    budget."""
    num_slots: Count = 256
    """Sequences decoded in parallel, over all problems."""
    seed: Seed = 0
    """Seed of the problems and of samples; beam and mcts use no random numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_changed(self, UNUSED[self.method], f"by method={self.method}")
        if self.leaf_value == "verifier" and self.method != "mcts":
            raise UsageError(f"leaf_value='verifier' is not used by method={self.method}; leave it out")
        if self.budget_tokens < self.max_new_tokens:
            raise UsageError(
                f"budget_tokens={self.budget_tokens} is too small for one completion of max_new_tokens="
                f"{self.max_new_tokens}; raise the budget or lower the limit"
            )
        if self.num_slots < self.leaves:
            raise UsageError(f"leaves={self.leaves} must be at most num_slots={self.num_slots}; change one")


@dataclass(frozen=True, kw_only=True)
class SearchConfig(SearchSettings, PromptSettings, Machine):
    """Search over options or tokens with a fixed budget of generated tokens per problem."""

    model: str
    """Training run, option plug-in, LoRA or backbone, by folder or hub id."""
    data: str = "arith"
    """Problems: arith, rg:TASK, jsonl:PATH, parquet:PATH or hf:ID."""
    split: str = "test"
    """Split of arith, rg: and hf: sources."""
    columns: str | None = None
    """Names of the columns, where they are not known ones: question=NAME,answer=NAME."""
    limit: Count | None = 128
    """Use only N problems; of files and hf: a sample drawn with the seed."""
    out: Path | None = None
    """JSON file for the result with all completions; a summary is printed in any case."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and self.out.is_dir():
            raise UsageError(f"out={self.out} is a folder; give a file")
