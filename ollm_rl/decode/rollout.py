"""The one rollout loop: a policy writes completions on a decode engine; training and evaluation use it alike.

A slot whose episode has ended is filled with the next one that waits, without stopping the others.

Letters: N episodes, T tokens of the longest completion, P tokens of the longest prompt.
"""

import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ollm_rl.decode.prompt_store import PromptStore
from ollm_rl.decode.turns import Tensors, Trajectories, Turns

OnEnd = Callable[[list[int], list[list[int]]], None]  # indices of episodes that have ended, and their tokens


@dataclass
class Rollout:
    """Completions of N episodes as tensors, padded on the right.

    Attributes:
        prompts: Token ids of every prompt.
        tokens: (N, T).
        completion_mask: True at an episode's tokens, the end-of-text token included, (N, T).
        decisions: True where, within the completion, the policy had a choice, (N, T).
        log_probs: Log-probabilities of the tokens at the time, (N, T), in nats.
        values: Value estimates at the time, (N, T).
        terminated: True where the end-of-text token came; the others reached the token limit, (N,).
        stored: What the policy keeps for its update, (N, T, ...).
        slot_steps: Steps of all slots that it took, those of slots without an episode included.
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
        """Share of a whole rollout's slot-steps that wrote no token of an episode."""
        return 1 - int(self.completion_mask.sum()) / self.slot_steps

    def select(self, rows: torch.Tensor, width: int | None = None) -> "Rollout":
        """Some episodes, cut to ``width``, the longest of their completions: knowing it saves a look at the device."""
        width = width or int(self.completion_mask[rows].sum(1).max())

        def pick(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[rows, :width]

        return Rollout(
            prompts=[self.prompts[row] for row in rows.tolist()],
            tokens=pick(self.tokens),
            completion_mask=pick(self.completion_mask),
            decisions=pick(self.decisions),
            log_probs=pick(self.log_probs),
            values=pick(self.values),
            terminated=self.terminated[rows],
            stored={name: pick(tensor) for name, tensor in self.stored.items()},
        )

    def to(self, device: torch.device | str) -> "Rollout":
        """The same on another device."""
        tensors = ("tokens", "completion_mask", "decisions", "log_probs", "values", "terminated")
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in tensors}
        return replace(self, **moved, stored={name: tensor.to(device) for name, tensor in self.stored.items()})

    @staticmethod
    def join(parts: Sequence["Rollout"]) -> "Rollout":
        """The episodes of all parts, one part after the other."""
        width = max(part.tokens.shape[1] for part in parts)

        def joined(columns: Sequence[torch.Tensor]) -> torch.Tensor:
            whole = columns[0].new_zeros(sum(map(len, columns)), width, *columns[0].shape[2:])
            for rows, column in zip(whole.split([len(column) for column in columns]), columns, strict=True):
                rows[:, : column.shape[1]] = column
            return whole

        names = ("tokens", "completion_mask", "decisions", "log_probs", "values")
        return Rollout(
            prompts=[prompt for part in parts for prompt in part.prompts],
            **{name: joined([getattr(part, name) for part in parts]) for name in names},
            terminated=torch.cat([part.terminated for part in parts]),
            stored={name: joined([part.stored[name] for part in parts]) for name in parts[0].stored},
            slot_steps=sum(part.slot_steps for part in parts),
        )

    def sequences(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prompt and completion side by side, padded on the right.

        Returns:
            ``input_ids`` and ``attention_mask``, (N, P + T), and for each completion position the index of the
            token before it, whose h_t chose it, (N, T).
        """
        device, width = self.tokens.device, self.tokens.shape[1]
        lengths = torch.tensor([len(prompt) for prompt in self.prompts], device=device)
        where = lengths[:, None] - 1 + torch.arange(width, device=device)
        longest = int(lengths.max()) + width
        input_ids = torch.zeros(len(self.prompts), longest, dtype=torch.long, device=device)
        rows = [torch.tensor(prompt) for prompt in self.prompts]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        input_ids[:, : padded.shape[1]] = padded
        input_ids.scatter_(1, where + 1, self.tokens.where(self.completion_mask, 0))
        ends = lengths + self.completion_mask.sum(1)
        mask = torch.arange(longest, device=device) < ends[:, None]
        return input_ids, mask.long(), where


@torch.no_grad()
def collect(
    turns: Turns,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int | Sequence[int],
    end_token: int,
    generator: torch.Generator | None = None,
    uniforms: torch.Tensor | None = None,
    on_end: OnEnd | None = None,
) -> Rollout:
    """Write one completion a prompt.

    Args:
        turns: Of a policy on an engine; as many episodes as the engine has slots are decoded side by side.
        prompts: N prompts; equal ones side by side are prefilled once.
        max_new_tokens: Token limit, or one an episode.
        end_token: Ends an episode; it is part of the completion.
        generator: A CPU generator to sample with. An episode's samples depend only on its own row, not on the number
            of slots.
        uniforms: Numbers in [0, 1) in place of a generator, (N, T); with neither, decoding is greedy.
        on_end: Called once with every episode, most of them while others go on.

    Returns:
        The rollout, in the order of the prompts.

    Raises:
        ValueError: If there are no prompts, or one does not fit the engine's slots.
        torch.cuda.OutOfMemoryError: If not even one slot fits; before, slots and passes are halved with a warning.
    """
    engine, count = turns.engine, len(prompts)
    limits = _token_limits(prompts, max_new_tokens, engine.max_length)
    if generator is not None:
        uniforms = torch.rand(count, max(limits), generator=generator)
    if uniforms is not None:
        uniforms = torch.nn.functional.pad(uniforms, (0, 0, 0, 1)).to(engine.device)  # a row for slots without episodes
    run = _Run(turns, prompts, limits, end_token, on_end)
    while run.waiting:
        failed = False
        try:
            run.go_on(uniforms)
        except torch.cuda.OutOfMemoryError:
            if engine.num_slots == 1:
                raise
            failed = True
        if failed:  # out here the error no longer holds the tensors of where it rose
            run.step_back()
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
    """One call of ``collect``: which episodes wait, run and have ended."""

    def __init__(
        self, turns: Turns, prompts: Sequence[list[int]], limits: list[int], end_token: int, on_end: OnEnd | None
    ) -> None:
        self.turns, self.engine, self.prompts = turns, turns.engine, prompts
        self.limits, self.end_token, self.on_end = limits, end_token, on_end
        self.waiting = deque(range(len(prompts)))
        self.running: list[int | None] = []  # episode of every slot
        self.trajectories = Trajectories(turns.record, len(prompts), max(limits))
        self.slot_steps = 0

    def go_on(self, uniforms: torch.Tensor | None) -> None:
        """Run the episodes that wait to their end."""
        engine, turns = self.engine, self.turns
        turns.start(self.end_token)
        store = PromptStore(engine)
        engine.restart(min(engine.num_slots, len(self.waiting)))
        self.running = [None] * len(engine.lengths)
        self._fill(store)
        while any(episode is not None for episode in self.running):
            self.slot_steps += turns.chunk * len(self.running)
            going = turns.run(uniforms, self.trajectories)
            self._hand_on(going)
            self.running = [episode if goes else None for episode, goes in zip(self.running, going, strict=True)]
            self._fill(store)
            if not self.waiting:
                self._shrink()

    def _hand_on(self, going: Sequence[bool]) -> None:
        """Tell of the episodes that have just ended."""
        pairs = zip(self.running, going, strict=True)
        ended = [episode for episode, goes in pairs if episode is not None and not goes]
        if self.on_end is None or not ended:
            return
        tokens, written = (self.trajectories.record.columns[name][ended].tolist() for name in ("tokens", "written"))
        self.on_end(ended, [row[: sum(mask)] for row, mask in zip(tokens, written, strict=True)])

    def step_back(self) -> None:
        """After running out of memory: half of the slots and half as long passes over prompts; what ran waits again."""
        before = self.engine.num_slots
        interrupted = [episode for episode in self.running if episode is not None]
        self.running = []
        self.trajectories.forget(interrupted)
        self.waiting.extendleft(reversed(interrupted))
        self.engine.free(before // 2)
        self.engine.pass_tokens = max(1, self.engine.pass_tokens // 2)
        warnings.warn(f"out of memory with {before} slots; going on with {before // 2}", RuntimeWarning, stacklevel=3)

    def rollout(self) -> Rollout:
        """What was written, cut to the longest completion."""
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
        """Begin waiting episodes in the slots that run none."""
        idle = [slot for slot, episode in enumerate(self.running) if episode is None][: len(self.waiting)]
        if not idle:
            return
        begun = [self.waiting.popleft() for _ in idle]
        for slot, episode in zip(idle, begun, strict=True):  # at once: should memory run out, they wait again
            self.running[slot] = episode
        store.fill(idle, [self.prompts[episode] for episode in begun], (self.prompts[n] for n in self.waiting))
        self.turns.begin(idle, begun, [self.limits[episode] for episode in begun])

    def _shrink(self) -> None:
        """Drop slots that are no longer needed; what stays keeps its place where it can."""
        left = sum(episode is not None for episode in self.running)
        enough = self.engine.enough(left)
        if not left or enough == len(self.running):
            return
        tail = [slot for slot in range(enough, len(self.running)) if self.running[slot] is not None]
        order = [slot if self.running[slot] is not None or not tail else tail.pop() for slot in range(enough)]
        self.turns.keep(order)
        self.running = [self.running[slot] for slot in order]
