"""Episodes in the slots of a decode engine: one turn chooses a token in every slot and runs the model on it.

On CUDA a turn, including the policy, is one recorded graph. Therefore the tensors that it reads and writes keep their
addresses, and it does not depend on their values on the host. Trajectories stay on the device, and the host reads from
it only between chunks of turns. On a CPU the same function is called directly.

Letters: S slots, B slots in use, C turns of a chunk, N episodes, T tokens, H hidden.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.devices import Fetched, to_device
from ollm_rl.errors import UsageError
from ollm_rl.settings import shown

CHUNK = 8  # turns between two synchronizations on CUDA: the host waits for each, and ended slots idle until the next

Tensors = dict[str, torch.Tensor]


@dataclass
class Action:
    """One token per row: the choice and what the update needs.

    Attributes:
        tokens: (B,).
        log_probs: Log-probabilities of the tokens, (B,), in nats.
        values: Value estimates, (B,).
        decisions: True if the policy had a choice, (B,).
        stored: Other tensors (B, ...) that the policy needs for its update, by names of its choice.
    """

    tokens: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    decisions: torch.Tensor
    stored: Tensors = field(default_factory=dict)

    @classmethod
    def of(cls, tokens: torch.Tensor) -> "Action":
        """An action of which only the tokens (B,) matter, as in an evaluation; the other numbers are 0."""
        zeros = torch.zeros(tokens.shape, device=tokens.device)
        return cls(tokens, zeros, zeros, zeros.bool())


# Chooses tokens from h_t, (B, H), and one number in [0, 1) per row for sampling, (B,), or None for greedy decoding.
Chooser = Callable[[torch.Tensor, torch.Tensor | None], Action]


class Record(NamedTuple):
    """Output of turns, as tensors with equal first two dimensions.

    Attributes:
        columns: ``written`` (true at an episode's tokens), ``ended`` (true at an end-of-text token), and ``tokens``,
            ``log_probs``, ``values`` and ``decisions`` of the actions.
        stored: The actions' ``stored`` tensors.
    """

    columns: Tensors
    stored: Tensors

    def zeros(self, rows: int, width: int) -> "Record":
        """A record of zeros of this size, with the types and further dimensions of this one."""

        def empty(tensors: Tensors) -> Tensors:
            return {name: tensor.new_zeros(rows, width, *tensor.shape[2:]) for name, tensor in tensors.items()}

        return Record(empty(self.columns), empty(self.stored))

    def pairs(self, other: "Record") -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs of tensors of the same name in both records."""
        parts = ((self.columns, other.columns), (self.stored, other.stored))
        return [(mine[name], theirs[name]) for mine, theirs in parts for name in mine]


class Trajectories:
    """The output of N episodes, as tensors on the device.

    Attributes:
        record: Tensors (N + 1, T, ...); the last row is for slots without an episode.
    """

    def __init__(self, like: Record, count: int, limit: int) -> None:
        self.record = like.zeros(count + 1, limit)

    def add(self, episodes: torch.Tensor, times: torch.Tensor, chunk: Record, slots: int) -> None:
        """Add the output of a chunk in the first slots: episodes and times (C, B), chunk (C, S, ...)."""
        for mine, theirs in self.record.pairs(chunk):
            mine[episodes, times] = theirs[:, :slots]

    def forget(self, episodes: list[int]) -> None:
        """Delete the output of episodes."""
        for name in ("written", "ended"):
            self.record.columns[name][episodes] = False


class Turns:
    """One chooser on one engine. It owns the tensors of its turns, so reuse it for several rollouts.

    Args:
        engine: Engine that runs the model.
        choose: A policy's ``act``, or any function that chooses tokens.
        chunk: C, turns between two checks for ended episodes; the result does not depend on it. None is 1 on a CPU and
            8 on CUDA, where a check waits for the device.

    Raises:
        UsageError: If ``choose`` returns no `Action` with a token per row.
    """

    def __init__(self, engine: DecodeEngine, choose: Chooser, *, chunk: int | None = None) -> None:
        self.engine = engine
        self.chunk = chunk or (CHUNK if engine.device.type == "cuda" else 1)
        self._choose = torch.compile(choose) if engine.compiled else choose
        # Compiled, two kernels in place of some twenty small ones. A function, because a compiled method would refer to
        # this object, and only Python's garbage collector would free the memory of its engine.
        self._note = torch.compile(_note) if engine.compiled else _note
        slots, device = engine.num_slots, engine.device
        # For every slot: its episode, the number of tokens written for it, and its token limit.
        self._episodes, self._times, self._limits = torch.zeros(3, slots, dtype=torch.long, device=device)
        self._live = torch.zeros(slots, dtype=torch.bool, device=device)
        self._uniforms = torch.zeros(self.chunk, slots, device=device)
        self._turn = torch.zeros(1, dtype=torch.long, device=device)  # within the chunk
        # A table of the vocabulary, because a graph records numbers and shapes as constants.
        self._is_end = torch.zeros(engine.vocab_size, dtype=torch.bool, device=device)
        action = _checked_action(choose(engine.hidden[:1], torch.zeros(1, device=device)))
        self.record = _record(action, self._live[:1], self._live[:1]).zeros(self.chunk, slots)

    def start(self, end_tokens: Sequence[int]) -> None:
        """Drop all episodes, and set the tokens that end an episode."""
        self._is_end.zero_()
        self._is_end[to_device(list(end_tokens), self.engine.device)] = True
        self._live.zero_()

    def begin(self, slots: list[int], episodes: list[int], limits: list[int]) -> None:
        """Start episodes with these token limits in slots that already hold their prompts."""
        index, new_episodes, new_limits = to_device([slots, episodes, limits], self.engine.device)
        self._episodes[index], self._limits[index] = new_episodes, new_limits
        self._times[index] = 0
        self._live[index] = True

    def keep(self, slots: list[int]) -> None:
        """Drop all slots except these, as ``DecodeEngine.keep``."""
        self.engine.keep(slots)
        index = to_device(slots, self.engine.device)
        for tensor in (self._episodes, self._times, self._limits, self._live):
            tensor[: len(slots)] = tensor[index]

    def run(
        self,
        uniforms: torch.Tensor | None,
        trajectories: Trajectories,
        *,
        waiting: bool = False,
        meanwhile: Callable[[Fetched], None] = lambda awaited: None,
    ) -> list[bool]:
        """Run a chunk of turns and return which slots still run an episode.

        Args:
            uniforms: Numbers in [0, 1) for sampling, (N + 1, T); None decodes greedily.
            trajectories: The output is added to them.
            waiting: Whether episodes wait for slots. Then the last turn of several hides the time in which the host
                fills slots; a slot that ends in this turn is reported after the next chunk.
            meanwhile: Called while the device runs the turns, with what the host will wait for.
        """
        count, columns = len(self.engine.lengths), trajectories.record.columns
        no_episode, last_time = (size - 1 for size in columns["written"].shape)
        times = self._times[:count] + torch.arange(self.chunk, device=self.engine.device)[:, None]
        times.clamp_(max=last_time)
        episodes = self._episodes[:count].where(self._live[:count], no_episode).expand(self.chunk, -1)
        if uniforms is not None:
            self._uniforms[:, :count] = uniforms[episodes, times]
        self._turn.zero_()
        choose = self._greedy if uniforms is None else self._sampled

        def add(awaited: Fetched) -> None:
            written = self.record.columns["written"][:, :count]
            trajectories.add(episodes.where(written, no_episode), times, self.record, count)
            meanwhile(awaited)

        mutated = self._times, self._turn
        ahead = int(waiting and self.chunk > 1)
        return self.engine.run(choose, self._live, self.chunk, mutated, after=add, ahead=ahead)

    def _greedy(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._take(hidden, None)

    def _sampled(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._take(hidden, self._uniforms.index_select(0, self._turn)[0, : len(hidden)])

    def _take(self, hidden: torch.Tensor, uniforms: torch.Tensor | None) -> torch.Tensor:
        """Choose a token for each h_t, (B, H), record it, and return the tokens, (B,)."""
        action: Action = self._choose(hidden, uniforms)
        self._note(self, action)
        return action.tokens


def _note(turns: Turns, action: Action) -> None:
    """Record an action of the first slots, and advance their episodes."""
    count = len(action.tokens)
    live, times = turns._live[:count], turns._times[:count]
    ended = live & turns._is_end[action.tokens]
    for mine, new in turns.record.pairs(_record(action, live, ended)):
        mine[:, :count].index_copy_(0, turns._turn, new)
    times.add_(1)
    live.logical_and_(~ended & (times < turns._limits[:count]))
    turns._turn.add_(1)


def _checked_action(action: Any) -> Action:
    """What a policy of one's own chose in one row.

    Raises:
        UsageError: If it is no `Action` with one token.
    """
    if not isinstance(action, Action) or not isinstance(action.tokens, torch.Tensor):
        raise UsageError(f"the policy's act returned {shown(action)}; return an Action, such as Action.of(tokens)")
    tokens = action.tokens
    if tokens.shape != (1,) or tokens.dtype not in (torch.int64, torch.int32):
        raise UsageError(
            f"the policy's act returned tokens of shape {tuple(tokens.shape)} and type {tokens.dtype} for one row; "
            "return one token id per row, such as logits.argmax(-1)"
        )
    return action


def _record(action: Action, live: torch.Tensor, ended: torch.Tensor) -> Record:
    """The record of one turn of B slots, (1, B, ...)."""
    columns = {
        "tokens": action.tokens,
        "log_probs": action.log_probs,
        "values": action.values,
        "decisions": action.decisions,
        "written": live,
        "ended": ended,
    }
    return Record(
        {name: column[None] for name, column in columns.items()},
        {name: tensor[None] for name, tensor in action.stored.items()},
    )
