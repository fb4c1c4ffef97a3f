"""The rollout loop of training and evaluation: a policy writes completions on a decode engine.

A slot whose episode has ended is filled with the next waiting episode, without stopping the others.

Letters: N episodes, T tokens of the longest completion, P tokens of the longest prompt.
"""

import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from ollm_rl.decode.prompt_store import PromptStore
from ollm_rl.decode.turns import Tensors, Trajectories, Turns
from ollm_rl.devices import Fetched, to_device
from ollm_rl.errors import RunWarning

OnEnd = Callable[[list[int], list[list[int]]], None]  # indices of episodes that have ended, and their tokens
OnWait = Callable[[Callable[[], bool]], None]  # gets a function that says whether the wait is over


@dataclass
class Rollout:
    """Completions of N episodes as tensors, padded on the right.

    Attributes:
        prompts: Token ids of every prompt.
        tokens: (N, T).
        completion_mask: True at an episode's tokens, the end-of-text token included, (N, T).
        decisions: True at tokens of the completion where the policy had a choice, (N, T).
        log_probs: Log-probabilities of the tokens when they were sampled, (N, T), in nats.
        values: Value estimates when the tokens were sampled, (N, T).
        terminated: True for episodes that ended with the end-of-text token; the others reached the token limit, (N,).
        stored: Tensors that the policy needs for its update, (N, T, ...).
        slot_steps: Number of steps summed over all slots, including slots without an episode.
    """

    prompts: list[list[int]]
    tokens: torch.Tensor
    completion_mask: torch.Tensor
    decisions: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    terminated: torch.Tensor
    stored: Tensors = field(default_factory=dict)
    slot_steps: int = 0

    @property
    def wasted_share(self) -> float:
        """Share of the slot-steps that wrote no token of an episode; for a whole rollout."""
        return 1 - int(self.completion_mask.sum()) / self.slot_steps

    @cached_property
    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and columns of the M decisions, (M,) each, row by row.

        Finding them makes the host wait for the device; code that knows them already may set them. They are kept, so
        decisions must not change afterwards.
        """
        rows, columns = self.decisions.nonzero(as_tuple=True)
        return rows, columns

    def at_places(self, values: torch.Tensor) -> torch.Tensor:
        """The values of the decisions: (N, T, ...) -> (M, ...)."""
        return values[self.places]

    def select(self, rows: Sequence[int], width: int | None = None) -> "Rollout":
        """Some episodes, cut to their longest completion. Its length as ``width`` avoids a wait for the device."""
        index = to_device(rows, self.tokens.device)
        width = width or int(self.completion_mask[index].sum(1).max())

        def pick(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[index, :width]

        return Rollout(
            prompts=[self.prompts[row] for row in rows],
            tokens=pick(self.tokens),
            completion_mask=pick(self.completion_mask),
            decisions=pick(self.decisions),
            log_probs=pick(self.log_probs),
            values=pick(self.values),
            terminated=self.terminated[index],
            stored={name: pick(tensor) for name, tensor in self.stored.items()},
        )

    def decision_positions(self) -> torch.Tensor:
        """Positions of each episode's decisions, in order, (N, D), D the most of an episode; others fill a row up."""
        order = self.decisions.int().argsort(stable=True, dim=1, descending=True)
        return order[:, : int(self.decisions.sum(1).max())]

    def at_decisions(self) -> "Rollout":
        """The decisions only, moved to the left, with T the most of an episode, and without prompts."""
        positions = self.decision_positions()

        def pick(tensor: torch.Tensor) -> torch.Tensor:
            index = positions.view(*positions.shape, *[1] * (tensor.dim() - 2))
            return tensor.gather(1, index.expand(-1, -1, *tensor.shape[2:]))

        names = ("tokens", "decisions", "log_probs", "values")
        columns: dict[str, Any] = {name: pick(getattr(self, name)) for name in names}
        return Rollout(
            prompts=[[] for _ in self.prompts],
            completion_mask=columns["decisions"],
            **columns,
            terminated=self.terminated,
            stored={name: pick(tensor) for name, tensor in self.stored.items()},
        )

    def to(self, device: torch.device | str) -> "Rollout":
        """The same rollout on another device."""
        names = ("tokens", "completion_mask", "decisions", "log_probs", "values", "terminated")
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in names}
        return replace(self, **moved, stored={name: tensor.to(device) for name, tensor in self.stored.items()})

    @staticmethod
    def join(parts: Sequence["Rollout"]) -> "Rollout":
        """The episodes of all parts, concatenated."""
        names = ("tokens", "completion_mask", "decisions", "log_probs", "values")
        return Rollout(
            prompts=[prompt for part in parts for prompt in part.prompts],
            **{name: stacked_rows([getattr(part, name) for part in parts]) for name in names},
            terminated=torch.cat([part.terminated for part in parts]),
            stored={name: stacked_rows([part.stored[name] for part in parts]) for name in parts[0].stored},
            slot_steps=sum(part.slot_steps for part in parts),
        )

    def sequences(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts followed by their completions, padded on the right to the longest of them, of L tokens.

        Returns:
            ``input_ids``, (N, L), and for every token of a completion the index of the token before it, whose h_t chose
            it, (N, T).
        """
        device, width = self.tokens.device, self.tokens.shape[1]
        lengths = torch.tensor([len(prompt) for prompt in self.prompts], device=device)
        previous = lengths[:, None] - 1 + torch.arange(width, device=device)
        rows = [torch.tensor(prompt) for prompt in self.prompts]
        prompts = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        input_ids = torch.nn.functional.pad(prompts, (0, width))
        input_ids.scatter_(1, previous + 1, self.tokens.where(self.completion_mask, 0))
        longest = int((lengths + self.completion_mask.sum(1)).max())
        return input_ids[:, :longest], previous.clamp(max=longest - 1)


def stacked_rows(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of parts of different widths, (n, T, ...), below each other, padded on the right with zeros."""
    width = max(part.shape[1] for part in parts)
    result = parts[0].new_zeros(sum(map(len, parts)), width, *parts[0].shape[2:])
    for rows, part in zip(result.split([len(part) for part in parts]), parts, strict=True):
        rows[:, : part.shape[1]] = part
    return result


@torch.no_grad()
def collect(
    turns: Turns,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int | Sequence[int],
    end_tokens: Sequence[int],
    generator: torch.Generator | None = None,
    uniforms: torch.Tensor | None = None,
    on_end: OnEnd | None = None,
    on_wait: OnWait | None = None,
) -> Rollout:
    """Write one completion per prompt.

    Args:
        turns: Turns of a policy on an engine. The engine decodes as many episodes in parallel as it has slots.
        prompts: N prompts; equal adjacent ones are encoded only once.
        max_new_tokens: Token limit, or one per episode.
        end_tokens: Tokens that end an episode; the one written is part of the completion.
        generator: CPU generator for sampling. An episode's samples depend only on its row, not on the number of slots.
        uniforms: Numbers in [0, 1) instead of a generator, (N, T). With neither, decoding is greedy.
        on_end: Called once for every episode, usually while others still run.
        on_wait: Called while the host would wait for the device, with a function that says whether the wait is over. It
            is for work that has time. On a CPU every wait is over at once.

    Returns:
        The rollout, in the order of the prompts.

    Raises:
        ValueError: If there are no prompts, or one does not fit the engine's slots.
        torch.cuda.OutOfMemoryError: If not even one slot fits. Before that, slots and passes are halved with a warning.
    """
    engine, count = turns.engine, len(prompts)
    limits = _token_limits(prompts, max_new_tokens, engine.max_length)
    if generator is not None:
        uniforms = torch.rand(count, max(limits), generator=generator)
    if uniforms is not None:
        uniforms = torch.nn.functional.pad(uniforms, (0, 0, 0, 1)).to(engine.device)  # a row for slots without episodes
    run = _Run(turns, prompts, limits, end_tokens, on_end, on_wait)
    while run.waiting:
        failed = False
        try:
            run.run_waiting(uniforms)
        except torch.cuda.OutOfMemoryError:
            if engine.num_slots == 1:
                raise
            failed = True
        if failed:  # outside of the except block, where the error would keep tensors alive
            run.halve()
    return run.rollout()


def _token_limits(prompts: Sequence[list[int]], max_new_tokens: int | Sequence[int], max_length: int) -> list[int]:
    """The token limit of every episode.

    Raises:
        ValueError: If there are no prompts, or one does not fit the slots.
    """
    if not prompts:
        raise ValueError("prompts is empty; give at least one")
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    for prompt, limit in zip(prompts, limits, strict=True):
        if len(prompt) + limit > max_length:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and max_new_tokens={limit} do not fit a slot of {max_length} "
                "tokens; shorten it, lower max_new_tokens or raise the engine's max_length"
            )
    return limits


class _Run:
    """State of one call of ``collect``: which episodes wait, run and have ended."""

    def __init__(
        self,
        turns: Turns,
        prompts: Sequence[list[int]],
        limits: list[int],
        end_tokens: Sequence[int],
        on_end: OnEnd | None,
        on_wait: OnWait | None,
    ) -> None:
        self.turns, self.engine, self.prompts = turns, turns.engine, prompts
        self.limits, self.end_tokens, self.on_end, self.on_wait = limits, end_tokens, on_end, on_wait
        self.waiting = deque(range(len(prompts)))
        self.running: list[int | None] = []  # episode of every slot
        self.trajectories = Trajectories(turns.record, len(prompts), max(limits))
        self.slot_steps = 0
        self.ended: tuple[list[int], Fetched, Fetched] | None = None  # not yet reported

    def run_waiting(self, uniforms: torch.Tensor | None) -> None:
        """Run all waiting episodes to their ends."""
        engine, turns = self.engine, self.turns
        turns.start(self.end_tokens)
        store = PromptStore(engine)
        engine.restart(min(engine.num_slots, len(self.waiting)))
        self.running = [None] * len(engine.lengths)
        self._fill(store)
        while any(episode is not None for episode in self.running):
            self.slot_steps += turns.chunk * len(self.running)
            waiting = bool(self.waiting)
            active = turns.run(uniforms, self.trajectories, waiting=waiting, meanwhile=self._use_wait)
            self._fetch_ended(active)
            self.running = [episode if runs else None for episode, runs in zip(self.running, active, strict=True)]
            self._fill(store)
            if not self.waiting:
                self._shrink()
        self._report_ended()

    def _fetch_ended(self, active: Sequence[bool]) -> None:
        """Begin to copy the episodes that have just ended to the host, which does not wait for the copy here."""
        pairs = zip(self.running, active, strict=True)
        ended = [episode for episode, runs in pairs if episode is not None and not runs]
        if self.on_end is not None and ended:
            columns, index = self.trajectories.record.columns, to_device(ended, self.engine.device)
            self.ended = ended, Fetched(columns["tokens"][index]), Fetched(columns["written"][index])

    def _use_wait(self, awaited: Fetched) -> None:
        """Do what the host has to do while the device runs a chunk."""
        self._report_ended()
        if self.on_wait is not None:
            self.on_wait(awaited.ready)

    def _report_ended(self) -> None:
        """Call ``on_end`` with the episodes that ended in the chunk before."""
        if self.on_end is None or self.ended is None:
            return
        ended, tokens, written = self.ended
        self.ended = None
        self.on_end(ended, [row[: sum(mask)] for row, mask in zip(tokens(), written(), strict=True)])

    def halve(self) -> None:
        """After running out of memory, halve the slots and the passes over prompts; interrupted episodes wait again."""
        num_slots = self.engine.num_slots
        interrupted = [episode for episode in self.running if episode is not None]
        self.running = []
        self.trajectories.forget(interrupted)
        self.waiting.extendleft(reversed(interrupted))
        self.engine.free(num_slots // 2)
        self.engine.pass_tokens = max(1, self.engine.pass_tokens // 2)
        message = f"out of memory with {num_slots} slots; continuing with {num_slots // 2}"
        warnings.warn(message, RunWarning, stacklevel=3)

    def rollout(self) -> Rollout:
        """The written episodes, cut to the longest completion."""
        columns, stored = self.trajectories.record
        mask = columns["written"][:-1]
        width = int(mask.sum(1).max())
        mask = mask[:, :width]

        def cut(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[:-1, :width]

        return Rollout(
            prompts=list(self.prompts),
            tokens=cut(columns["tokens"]),
            completion_mask=mask,
            decisions=cut(columns["decisions"]) & mask,
            log_probs=cut(columns["log_probs"]),
            values=cut(columns["values"]),
            terminated=(cut(columns["ended"]) & mask).any(1),
            stored={name: cut(tensor) for name, tensor in stored.items()},
            slot_steps=self.slot_steps,
        )

    def _fill(self, store: PromptStore) -> None:
        """Start waiting episodes in idle slots."""
        idle = [slot for slot, episode in enumerate(self.running) if episode is None][: len(self.waiting)]
        if not idle:
            return
        episodes = [self.waiting.popleft() for _ in idle]
        # Before the prompts are encoded, so that these episodes wait again if memory runs out.
        for slot, episode in zip(idle, episodes, strict=True):
            self.running[slot] = episode
        store.fill(idle, [self.prompts[episode] for episode in episodes], (self.prompts[n] for n in self.waiting))
        self.turns.begin(idle, episodes, [self.limits[episode] for episode in episodes])

    def _shrink(self) -> None:
        """Drop slots that are no longer needed; the others keep their numbers if possible."""
        num_running = sum(episode is not None for episode in self.running)
        num_slots = self.engine.slots_for(num_running)
        if not num_running or num_slots == len(self.running):
            return
        tail = [slot for slot in range(num_slots, len(self.running)) if self.running[slot] is not None]
        order = [slot if self.running[slot] is not None or not tail else tail.pop() for slot in range(num_slots)]
        self.turns.keep(order)
        self.running = [self.running[slot] for slot in order]
