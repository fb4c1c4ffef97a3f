"""Episodes in the slots of a decode engine: one turn chooses a token in every slot and runs the model on it.

A turn reads and writes tensors that stay where they are and asks nothing of their values, so that on CUDA it is one
recorded graph with the policy inside; trajectories stay on the device, and the host looks at it only between chunks of
turns. On a CPU the same function is called as it is.

Letters: S slots, B slots in use, C turns of a chunk, N episodes, T tokens, H hidden.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch

from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.devices import send


@dataclass
class Action:
    """One token a row: what was chosen and what the update needs.

    Attributes:
        tokens: (B,).
        log_probs: Log-probability of the token, (B,), in nats.
        values: Value estimates, (B,).
        decisions: True where the policy had a choice, (B,).
        stored: Further tensors (B, ...) that the rollout keeps for ``evaluate``.
    """

    tokens: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    decisions: torch.Tensor
    stored: dict[str, torch.Tensor] = field(default_factory=dict)


class Actor(Protocol):
    """What chooses tokens: a policy, or one that is sampled otherwise."""

    def act(self, hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Action:
        """As ``OptionPolicy.act``."""
        ...


class Trajectories:
    """What N episodes have written, as tensors on the device.

    Attributes:
        columns: ``written`` (true at an episode's tokens), ``ended`` (true at an end-of-text token) and the fields of
            ``Action`` with what it stores, each (N + 1, T, ...); the last row is for slots without an episode.
    """

    def __init__(self, like: dict[str, torch.Tensor], count: int, limit: int) -> None:
        self.columns = {name: column.new_zeros(count + 1, limit, *column.shape[2:]) for name, column in like.items()}

    def add(self, episodes: torch.Tensor, times: torch.Tensor, chunk: dict[str, torch.Tensor]) -> None:
        """Write what slots did in a chunk: episodes and times (C, B), columns (C, B, ...)."""
        for name, column in chunk.items():
            self.columns[name][episodes, times] = column

    def forget(self, episodes: list[int]) -> None:
        """Take back what episodes have written."""
        for name in ("written", "ended"):
            self.columns[name][episodes] = False


class Slots:
    """The tensors of one policy's turns on one engine.

    Args:
        policy: Chooses the tokens.
        engine: On its backbone.
        sampled: Whether it samples; else it decodes greedily.
        chunk: C.
    """

    def __init__(self, policy: Actor, engine: DecodeEngine, *, sampled: bool, chunk: int) -> None:
        self.policy, self.engine, self.sampled, self.chunk = policy, engine, sampled, chunk
        self._act = torch.compile(policy.act) if engine.compiled else policy.act
        slots, device = engine.num_slots, engine.device
        # Of every slot: the episode it runs, the tokens written for it, and the most there may be.
        self.episodes, self.times, self.limits = torch.zeros(3, slots, dtype=torch.long, device=device)
        self.live = torch.zeros(slots, dtype=torch.bool, device=device)
        self.uniforms = torch.zeros(self.chunk, slots, device=device)
        self.turn = torch.zeros(1, dtype=torch.long, device=device)  # within the chunk
        self.end_token = torch.zeros((), dtype=torch.long, device=device)  # a tensor: a graph would keep a number
        example = self._columns(policy.act(engine.hidden[:1], torch.zeros(1, device=device)), self.live[:1])
        self.columns = {
            name: column.new_zeros(self.chunk, slots, *column.shape[1:]) for name, column in example.items()
        }

    def begin(self, slots: list[int], episodes: list[int], limits: list[int]) -> None:
        """Give slots, already filled with the prompts, to episodes with these token limits."""
        index, of_slots, highest = send([slots, episodes, limits], self.engine.device)
        self.episodes[index], self.limits[index] = of_slots, highest
        self.times[index] = 0
        self.live[index] = True

    def keep(self, slots: list[int]) -> None:
        """Drop all slots but these, as ``DecodeEngine.keep``."""
        self.engine.keep(slots)
        index = send(slots, self.engine.device)
        for tensor in (self.episodes, self.times, self.limits, self.live):
            tensor[: len(slots)] = tensor[index]

    def run(self, uniforms: torch.Tensor | None, trajectories: Trajectories) -> list[bool]:
        """A chunk of turns; returns which slots still run an episode.

        Args:
            uniforms: Numbers in [0, 1) to sample with, (N + 1, T); None decodes greedily.
            trajectories: Get what was written.
        """
        count, engine = len(self.engine.lengths), self.engine
        live, idle = self.live[:count], trajectories.columns["written"].shape[0] - 1
        times = self.times[:count] + torch.arange(self.chunk, device=engine.device)[:, None]
        times.clamp_(max=trajectories.columns["written"].shape[1] - 1)
        episodes = self.episodes[:count].where(live, idle).expand(self.chunk, -1)
        if uniforms is not None:
            self.uniforms[:, :count] = uniforms[episodes, times]
        longest = max(engine.lengths)
        engine.share_prompts()
        self.turn.zero_()
        for turn in range(self.chunk):
            # Slots that end within a chunk stay where they are, so no position passes the longest slot's.
            length = engine.read_length(min(longest + turn, engine.max_length - 1))
            key = (self.policy, self.sampled, self.chunk, count, length)
            moved = (engine.positions, engine.hidden, self.times, self.live, self.turn)
            engine.graphs.run(key, partial(self.take_turn, count, length), moved)
        written = {name: column[:, :count] for name, column in self.columns.items()}
        trajectories.add(episodes.where(written["written"], idle), times, written)
        going: list[bool] = live.tolist()
        engine.lengths = [n + self.chunk if goes else 0 for n, goes in zip(engine.lengths, going, strict=True)]
        return going

    @torch.no_grad()
    def take_turn(self, count: int, length: int) -> None:
        """Choose a token in the first ``count`` slots, record it, and run the model on it, reading L tokens."""
        engine = self.engine
        uniforms = self.uniforms.index_select(0, self.turn)[0, :count] if self.sampled else None
        action: Action = self._act(engine.hidden[:count], uniforms)
        live, times = self.live[:count], self.times[:count]
        ended = live & (action.tokens == self.end_token)
        for name, column in self._columns(action, live, ended).items():
            self.columns[name][:, :count].index_copy_(0, self.turn, column[None])
        times += 1
        live &= ~ended & (times < self.limits[:count])
        engine.tokens[:count] = action.tokens
        engine.advance(count, length)
        engine.positions[:count] += live
        self.turn += 1

    @staticmethod
    def _columns(action: Action, live: torch.Tensor, ended: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {
            "tokens": action.tokens,
            "log_probs": action.log_probs,
            "values": action.values,
            "decisions": action.decisions,
            "written": live.clone(),  # a turn goes on to change it
            "ended": live if ended is None else ended,
            **action.stored,
        }
