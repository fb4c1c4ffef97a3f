"""Ways to let the latent policy write the same completions, for ``decode.py``: our engine and its competitors.

All use the same ``OptionPolicy`` on h_t. Only ``generate_batch`` runs without it, which favours it. A contender returns
the seconds that its tokens took. Tokens of a finished row do not count.

Letters: N episodes, B rows, T tokens, H hidden, V vocabulary.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)

from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import Rollout, collect
from ollm_rl.decode.turns import Turns
from ollm_rl.envs.vector import TextGenVectorEnv
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.sources import load_problems

Clock = Callable[[], float]  # seconds
SILENCE = 30  # seconds without a finished request after which generate_batch has failed


@dataclass
class Workload:
    """The work to do: N prompts, each with its number of new tokens.

    Attributes:
        model: The option model.
        policy: Policy of every contender that is not given another.
        tokenizer: The backbone's tokenizer; None for a random backbone.
        prompts: Token ids of every prompt.
        lengths: Number of new tokens for every prompt.
        slots: Number of rows that are decoded together.
        seed: Seed of all random draws.
    """

    model: OptionModel
    policy: OptionPolicy
    tokenizer: PreTrainedTokenizerBase | None
    prompts: list[list[int]]
    lengths: list[int]
    slots: int
    seed: int

    @property
    def backbone(self) -> PreTrainedModel:
        """The language model."""
        return self.model.backbone

    @property
    def tokens(self) -> int:
        """Number of all new tokens."""
        return sum(self.lengths)

    @property
    def max_length(self) -> int:
        """Tokens of the longest prompt plus those of the longest completion."""
        return max(map(len, self.prompts)) + max(self.lengths)


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Engine:
    """Our engine: ``collect`` with continuous batching, on CUDA in fused mode."""

    def __init__(self, work: Workload, clock: Clock, *, policy: Policy | None = None, compiled: bool = False) -> None:
        self.work, self.clock = work, clock
        slots = min(work.slots, len(work.prompts))
        self.engine = DecodeEngine(work.backbone, slots, work.max_length, compiled=compiled)
        self.turns = Turns(self.engine, (policy or work.policy).act)
        self.rollout: Rollout | None = None

    def __call__(self) -> float:
        """Write everything once."""
        wait(self.engine.device)
        started = self.clock()
        self.rollout = collect(
            self.turns,
            self.work.prompts,
            max_new_tokens=self.work.lengths,
            end_tokens=[],
            generator=torch.Generator().manual_seed(self.work.seed),
        )
        wait(self.engine.device)
        return self.clock() - started

    def prefill(self) -> float:
        """Seconds to encode only the prompts."""
        wait(self.engine.device)
        started = self.clock()
        for _ in self.engine.encode(self.work.prompts):
            pass
        wait(self.engine.device)
        return self.clock() - started


class EngineSteps:
    """Our engine with the policy outside: ``step``, then ``act`` from Python. Rows run in waves, without refilling."""

    def __init__(self, work: Workload, clock: Clock) -> None:
        self.work, self.clock = work, clock
        self.engine = DecodeEngine(work.backbone, min(work.slots, len(work.prompts)), work.max_length)

    @torch.no_grad()
    def __call__(self) -> float:
        """Write everything once."""
        work, device = self.work, self.engine.device
        generator = torch.Generator(device).manual_seed(work.seed)
        wait(device)
        started = self.clock()
        for first in range(0, len(work.prompts), work.slots):
            lengths = work.lengths[first : first + work.slots]
            self.engine.restart(len(lengths))
            hidden = self.engine.prefill(range(len(lengths)), work.prompts[first : first + work.slots])
            for step in range(1, max(lengths)):
                uniforms = torch.rand(len(lengths), generator=generator, device=device)
                hidden = self.engine.step(work.policy.act(hidden, uniforms).tokens)
                for slot in np.flatnonzero(np.array(lengths) == step).tolist():
                    self.engine.release(slot)
        wait(device)
        return self.clock() - started


class LatentHead(nn.Module):
    """Replaces an output head: logits under which only the policy's token is possible, (B, T, H) -> (B, T, V)."""

    def __init__(self, policy: OptionPolicy, vocab_size: int) -> None:
        super().__init__()
        self.act, self.vocab_size = policy.act, vocab_size

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits of the policy's tokens."""
        rows = hidden_states.flatten(0, 1)
        tokens = self.act(rows, torch.rand(len(rows), device=rows.device)).tokens
        logits = torch.full((len(rows), self.vocab_size), -1e4, device=rows.device)
        return logits.scatter_(1, tokens[:, None], 0.0).view(*hidden_states.shape[:2], -1)


class RowLengths(StoppingCriteria):
    """Ends every row at its own length."""

    def __init__(self, lengths: torch.Tensor, prompt_width: int) -> None:
        self.lengths, self.prompt_width = lengths, prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """True for rows that have all their tokens."""
        return input_ids.shape[1] - self.prompt_width >= self.lengths


class Generate:
    """Hugging Face's ``generate`` on padded batches, with the policy in place of the output head."""

    def __init__(self, work: Workload, clock: Clock, cache: str) -> None:
        self.work, self.clock, self.cache = work, clock, cache
        self.model = copy.copy(work.backbone)  # the same weights with another head
        self.model._modules = dict(work.backbone._modules)
        self.model.generation_config = GenerationConfig()  # the model's own config would end rows at the end of text
        self.model.lm_head = LatentHead(work.policy, work.model.vocab_size)

    @torch.no_grad()
    def __call__(self) -> float:
        """Write everything once, batch by batch."""
        work, device = self.work, self.work.backbone.device
        torch.manual_seed(work.seed)
        wait(device)
        started = self.clock()
        for first in range(0, len(work.prompts), work.slots):
            prompts = work.prompts[first : first + work.slots]
            lengths = torch.tensor(work.lengths[first : first + work.slots], device=device)
            width = max(map(len, work.prompts))  # one width for all batches, as the static cache needs
            ids = torch.zeros(len(prompts), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, prompt in enumerate(prompts):
                ids[row, width - len(prompt) :] = torch.tensor(prompt)
                mask[row, width - len(prompt) :] = 1
            written = self.model.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=max(work.lengths),
                    eos_token_id=None,
                    pad_token_id=0,
                    cache_implementation=self.cache,
                ),
                stopping_criteria=[RowLengths(lengths, width)],
            )
            assert written.shape[1] == width + int(lengths.max())
        wait(device)
        return self.clock() - started


class GenerateBatch:
    """Continuous batching of transformers, greedy and with the plain output head.

    The manager, its cache and its recorded graphs are kept between runs.
    """

    def __init__(self, work: Workload, clock: Clock) -> None:
        self.work, self.clock = work, clock
        work.backbone.destroy_cached_continuous_batching_manager()  # of the previous case

    def __call__(self) -> float:
        """Write everything once."""
        work = self.work
        wait(work.backbone.device)
        started = self.clock()
        settings = GenerationConfig(do_sample=False, max_new_tokens=max(work.lengths), eos_token_id=-1, pad_token_id=0)
        with work.backbone.continuous_batching_context_manager(
            generation_config=settings,
            continuous_batching_config=ContinuousBatchingConfig(max_memory_percent=0.5),  # leaves some to the others
            persistent_manager=True,
        ) as manager:
            for prompt, length in zip(work.prompts, work.lengths, strict=True):
                manager.add_request(prompt, max_new_tokens=length, eos_token_id=-1)
            finished = tokens = 0
            while finished < len(work.prompts):
                result = manager.get_result(timeout=SILENCE)
                if result is None:
                    raise RuntimeError(f"silent for {SILENCE} s after {finished} of {len(work.prompts)} requests")
                if result.is_finished():
                    finished, tokens = finished + 1, tokens + len(result.generated_tokens)
        if tokens != work.tokens:
            raise RuntimeError(f"wrote {tokens} tokens in place of {work.tokens}")
        wait(work.backbone.device)
        return self.clock() - started


class VectorEnvSteps:
    """``TextGenVectorEnv.step`` with the policy outside.

    Its actions are tokens, so that episodes can end at random lengths like those of the workload.
    """

    def __init__(self, work: Workload, clock: Clock, *, compiled: bool = False) -> None:
        assert work.tokenizer is not None
        self.work, self.clock = work, clock
        self.envs = TextGenVectorEnv(
            work.slots,
            work.model,
            load_problems("arith", limit=len(work.prompts), seed=work.seed),
            action_space="tokens",
            max_new_tokens=max(work.lengths),
            tokenizer=work.tokenizer,
            autoreset_mode="SameStep",
            compiled=compiled,
        )

    def __call__(self) -> float:
        """Write at least the tokens of the workload; the time is scaled to their number."""
        work, device = self.work, self.work.backbone.device
        end = int(work.tokenizer.eos_token_id)  # type: ignore[union-attr]
        draw = np.random.default_rng(work.seed)
        generator = torch.Generator(device).manual_seed(work.seed)
        observations, _ = self.envs.reset(seed=work.seed)
        low, high = min(work.lengths), max(work.lengths)
        lengths, written = draw.integers(low, high + 1, work.slots), np.zeros(work.slots, dtype=np.int64)
        tokens = 0
        started = self.clock()
        while tokens < work.tokens:
            hidden = torch.from_numpy(observations).to(device, work.backbone.dtype)
            uniforms = torch.rand(work.slots, generator=generator, device=device)
            actions = work.policy.act(hidden, uniforms).tokens.cpu().numpy()
            written += 1
            actions = np.where(written >= lengths, end, np.where(actions == end, end + 1, actions))
            observations, _, terminations, truncations, _ = self.envs.step(actions)
            ended = terminations | truncations
            lengths[ended], written[ended] = draw.integers(low, high + 1, ended.sum()), 0
            tokens += work.slots
        return (self.clock() - started) * work.tokens / tokens
