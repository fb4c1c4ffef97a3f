"""Sampling a policy at a temperature and from its most probable tokens only.

Letters: B rows, C choices per row, H hidden.
"""

import torch

from ollm_rl.agents.policies.base import Policy, draw, tempered
from ollm_rl.decode.turns import Action


class Tempered:
    """A policy sampled at a temperature, from its nucleus if ``top_p`` is below 1 (Holtzman et al. 2020).

    Args:
        policy: Anything with ``choices``; without a value head its values are 0.
        temperature: Token probabilities are taken to the power of 1 / temperature and normalised.
        top_p: Of these only the most probable tokens are kept whose probabilities first add up to this.
    """

    def __init__(self, policy: Policy, temperature: float, top_p: float = 1.0) -> None:
        self.policy, self.temperature, self.top_p = policy, temperature, top_p

    @torch.no_grad()
    def act(self, hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Action:
        """As in ``Policy.act``; log-probabilities are the policy's own, at temperature 1 and without a nucleus."""
        tokens, log_probs = self.policy.choices(hidden_states)
        if uniforms is None:
            chosen = log_probs.argmax(-1)
        else:
            chosen = draw(nucleus(tempered(log_probs, self.temperature).exp(), self.top_p), uniforms)
        value_head = getattr(self.policy, "value_head", None)
        return Action(
            tokens=tokens.gather(1, chosen[:, None])[:, 0],
            log_probs=log_probs.gather(1, chosen[:, None])[:, 0],
            values=torch.zeros_like(log_probs[:, 0]) if value_head is None else value_head(hidden_states.float())[:, 0],
            decisions=(log_probs > -torch.inf).sum(-1) > 1,
        )


def nucleus(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Probabilities (B, C), with 0 for all but the most probable ones that first add up to ``top_p``."""
    if top_p == 1:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # probability of the more probable ones; 0 for the first, which always stays
    return torch.zeros_like(probs).scatter(-1, order, ordered.where(before < top_p, 0))
