"""Training of the options with ``transformers.Trainer``, in one process or in several that share every batch."""

import logging
from typing import Any

import torch

from ollm_rl.options.diagnostics import MAX_POSITIONS, collapse_warning, option_diagnostics, option_usage
from ollm_rl.options.model import CountedStates, OptionModel, OptionOutput
from ollm_rl.pretrain.callbacks import refuse_not_finite
from ollm_rl.pretrain.shares import SharingTrainer, first_positions, stand_in
from ollm_rl.processes import weighted_means, world_size

SETTLED = 0.2  # share of the steps after which options that still agree have collapsed and are not just untrained

logger = logging.getLogger(__name__)


class LossOfStates(OptionModel):
    """An option model whose call is its loss, so that several processes average its gradient when it is called."""

    def forward(self, states: CountedStates) -> OptionOutput:  # type: ignore[override]
        """`OptionModel.loss`."""
        return self.loss(states)


class OptionTrainer(SharingTrainer):
    """``Trainer`` for an ``OptionModel``: logs every term, adapts the KL weight, saves only the plug-in.

    Batches hold token ids or stored hidden states.
    """

    model: OptionModel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pending: list[dict[str, torch.Tensor]] = []
        self._states: CountedStates | None = None  # of the last batch
        self._warned = False

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """The option loss of one batch; a scalar with gradient."""
        has_token_ids = "input_ids" in inputs
        states = self.model.counted_states(**inputs) if has_token_ids else CountedStates(**inputs)
        count = len(states.targets)  # 0 only if the batch has fewer solutions than there are processes
        self._states = states
        output: OptionOutput = model(states if count else stand_in(states))
        terms = [output.cross_entropy, output.kl, output.policy_loss, *output.option_probs.mean(0)]
        means, share = weighted_means(torch.stack(terms), count)
        weight, kl = self.model.adapter.kl_weight, float(means[1])
        refuse_not_finite({"kl": kl}, self.args, self.state.global_step + 1)
        weight.update(kl)
        named = zip(("cross_entropy", "kl", "policy_loss"), means[:3], strict=True)
        self._pending.append(
            {**dict(named), "option_usage": option_usage(means[None, 3:]), "kl_weight": weight.weight.clone()}
        )
        return output.loss * (share * world_size())  # the gradient is the mean over processes

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means since the last logged line, and the option diagnostics of the last batch."""
        if self._pending and self._states is not None and "loss" in logs:
            for name in self._pending[0]:
                logs[name] = float(torch.stack([terms[name] for terms in self._pending]).mean())
            self._pending.clear()
            logs |= option_diagnostics(self.model, first_positions(self._states, MAX_POSITIONS))
            if not self._warned and self.state.global_step > SETTLED * self.args.max_steps:
                warning = collapse_warning(logs, self.model.option_config)
                self._warned = warning is not None
                if warning:
                    logger.warning("step %d: %s", self.state.global_step, warning)
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.model.load_adapter(resume_from_checkpoint)
