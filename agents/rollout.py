"""The one rollout loop: a policy writes completions on a decode engine; training and evaluation use it alike.

Letters: N episodes, T tokens of the longest completion, P tokens of the longest prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ollm_rl.agents.policies import OptionPolicy, TokenPolicy
from ollm_rl.engine import DecodeEngine

Policy = OptionPolicy | TokenPolicy
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
    """

    prompts: list[list[int]]
    tokens: torch.Tensor
    completion_mask: torch.Tensor
    decisions: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    terminated: torch.Tensor
    stored: dict[str, torch.Tensor] = field(default_factory=dict)

    def take(self, rows: torch.Tensor) -> "Rollout":
        """Some episodes, cut to the longest of their completions."""
        width = int(self.completion_mask[rows].sum(1).max())

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
    policy: Policy,
    engine: DecodeEngine,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    end_token: int,
    generator: torch.Generator | None,
    on_end: OnEnd | None = None,
) -> Rollout:
    """Write one completion a prompt.

    Args:
        policy: Chooses the tokens.
        engine: On the policy's backbone; as many episodes as it has slots are decoded side by side.
        prompts: N prompts; equal ones side by side are prefilled once.
        max_new_tokens: Token limit.
        end_token: Ends an episode; it is part of the completion.
        generator: A CPU generator to sample with; None decodes greedily. An episode's samples depend on its own
            row alone, not on the number of slots.
        on_end: Called once with every episode, most of them while others go on.

    Returns:
        The rollout, in the order of the prompts.
    """
    count = len(prompts)
    uniforms = None if generator is None else torch.rand(count, max_new_tokens, generator=generator)
    parts = []
    for start in range(0, count, engine.num_slots):
        stop = min(count, start + engine.num_slots)
        drawn = None if uniforms is None else uniforms[start:stop]
        parts.append(_wave(policy, engine, prompts[start:stop], drawn, max_new_tokens, end_token, start, on_end))
    return parts[0] if len(parts) == 1 else _join(parts)


def _wave(
    policy: Policy,
    engine: DecodeEngine,
    prompts: Sequence[list[int]],
    uniforms: torch.Tensor | None,
    max_new_tokens: int,
    end_token: int,
    first: int,
    on_end: OnEnd | None,
) -> Rollout:
    """Episodes side by side until all have ended; the engine shrinks as they do. ``first`` is the first's index."""
    count = len(prompts)
    device = engine.device
    uniforms = None if uniforms is None else uniforms.to(device)
    engine.restart(count)
    hidden = engine.prefill(range(count), prompts)
    episodes = torch.arange(count, device=device)  # of every slot
    live = torch.ones(count, dtype=torch.bool, device=device)  # slots whose episode goes on
    kept: dict[str, torch.Tensor] = {}
    mask = torch.zeros(count, max_new_tokens, dtype=torch.bool, device=device)
    terminated = torch.zeros(count, dtype=torch.bool, device=device)
    left = count
    for t in range(max_new_tokens):
        action = policy.act(hidden, None if uniforms is None else uniforms[episodes, t])
        columns = {
            "tokens": action.tokens,
            "log_probs": action.log_probs,
            "values": action.values,
            "decisions": action.decisions,
            **action.stored,
        }
        for name, column in columns.items():
            if name not in kept:
                kept[name] = column.new_zeros(count, max_new_tokens, *column.shape[1:])
            kept[name][episodes, t] = column
        mask[episodes, t] = live
        ended = live & (action.tokens == end_token)
        terminated[episodes[ended]] = True
        live = live & ~ended
        tokens, before, left = action.tokens, left, int(live.sum())
        is_last = left == 0 or t + 1 == max_new_tokens
        if on_end is not None and (left < before or is_last):
            rows = episodes[ended | live] if is_last else episodes[ended]
            on_end([first + row for row in rows.tolist()], kept["tokens"][rows, : t + 1].tolist())
        if is_last:
            break
        if engine.enough(left) < len(live):
            going = live.logical_not().argsort(stable=True)[: engine.enough(left)]
            engine.keep(going.tolist())
            episodes, tokens, live = episodes[going], tokens[going], live[going]
        hidden = engine.step(tokens)
    width = t + 1
    kept = {name: column[:, :width] for name, column in kept.items()}
    return Rollout(
        prompts=list(prompts),
        tokens=kept.pop("tokens"),
        completion_mask=mask[:, :width],
        decisions=kept.pop("decisions") & mask[:, :width],
        log_probs=kept.pop("log_probs"),
        values=kept.pop("values"),
        terminated=terminated,
        stored=kept,
    )


def _join(parts: list[Rollout]) -> Rollout:
    """Waves one after another, padded to the longest."""
    width = max(part.tokens.shape[1] for part in parts)

    def padded(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(
            [torch.cat([x, x.new_zeros(x.shape[0], width - x.shape[1], *x.shape[2:])], 1) for x in tensors]
        )

    return Rollout(
        prompts=[prompt for part in parts for prompt in part.prompts],
        tokens=padded([part.tokens for part in parts]),
        completion_mask=padded([part.completion_mask for part in parts]),
        decisions=padded([part.decisions for part in parts]),
        log_probs=padded([part.log_probs for part in parts]),
        values=padded([part.values for part in parts]),
        terminated=torch.cat([part.terminated for part in parts]),
        stored={name: padded([part.stored[name] for part in parts]) for name in parts[0].stored},
    )
