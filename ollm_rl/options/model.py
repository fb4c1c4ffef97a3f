"""The option model: a frozen backbone with K learned next-token options (OLLM, Sec. 2.2).

Letters: B batch, T tokens, N counted positions, H hidden, K options, V vocabulary; ``...`` any leading dimensions.
"""

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from ollm_rl.backbones.chunks import each_chunk
from ollm_rl.backbones.loading import as_backbone, fingerprint, load_backbone, not_finite
from ollm_rl.backbones.names import OPTION_FILE, WEIGHTS_FILE, config_file, resolve
from ollm_rl.backbones.output_head import OutputHead, check_token_ids, last_hidden_states
from ollm_rl.errors import DamagedError, MissingError, UsageError, one_line
from ollm_rl.files.checksums import check_file
from ollm_rl.files.records import read_object
from ollm_rl.files.tensors import sealed_weights
from ollm_rl.options import hub
from ollm_rl.options.adapter import OptionAdapter, default_width
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.generation import Option, check_option, chosen_logits, generate_with
from ollm_rl.options.losses import (
    expected_cross_entropy,
    kl_to_prior,
    policy_imitation_loss,
    policy_marginal_loss,
    sample_options,
    token_cross_entropy,
)
from ollm_rl.options.tokens import option_tokens
from ollm_rl.runs import write_atomic
from ollm_rl.settings import expect

IGNORED = -100  # label that transformers' losses ignore
ROWS_TOGETHER = {"cpu": 8, "cuda": 32}  # sequences of similar length per pass of the frozen backbone


class CountedStates(NamedTuple):
    """Training data of the plug-in: the N positions whose next token counts, row by row.

    Attributes:
        hidden_states: h_t, (N, H).
        targets: The true next tokens, (N,).
        offsets: Position of the next token within its completion, from 0, (N,).
    """

    hidden_states: torch.Tensor
    targets: torch.Tensor
    offsets: torch.Tensor


@dataclass(kw_only=True)
class OptionOutput:
    """Losses in nats, averaged over the N counted positions.

    Attributes:
        loss: L_CE + beta * L_KL + L_policy, with gradient.
        cross_entropy: L_CE (eq. 4).
        kl: L_KL (eq. 5), with the prior of the settings.
        policy_loss: L_policy (eq. 6), or the mixture's negative log-likelihood.
        option_probs: q(z | h_t, e(x_{t+1})), (N, K).
    """

    loss: torch.Tensor
    cross_entropy: torch.Tensor
    kl: torch.Tensor
    policy_loss: torch.Tensor
    option_probs: torch.Tensor


class OptionModel(nn.Module):
    """A causal language model with options. The backbone's weights never change.

    Build one with ``from_backbone``, or load a trained plug-in with ``from_pretrained``.

    Attributes:
        backbone: The frozen language model.
        head: The backbone's output head.
        adapter: The trainable plug-in.
        option_config: Settings of the plug-in.
    """

    def __init__(self, backbone: PreTrainedModel, config: OptionConfig) -> None:
        super().__init__()
        expect(config, OptionConfig)
        self.backbone = as_backbone(backbone).requires_grad_(False).eval()
        self.head = OutputHead(backbone)
        self.option_config = config
        self.hidden_size, self.vocab_size = self.head.hidden_size, self.head.vocab_size
        self.width = config.width or default_width(config, self.hidden_size, backbone.num_parameters())
        self.adapter = OptionAdapter(config, self.hidden_size, self.width).to(backbone.device)

    @classmethod
    def from_backbone(
        cls,
        name_or_model: str | Path | PreTrainedModel,
        config: OptionConfig | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "OptionModel":
        """Add untrained options to a causal language model.

        Args:
            name_or_model: A name that ``load_backbone`` knows, or a model.
            config: Settings; None is ``OptionConfig()``.
            dtype: Precision of a backbone loaded by name.
            device: Device of a backbone loaded by name.

        Raises:
            ValueError: If there is no such model, or its output head is not supported.
        """
        if isinstance(name_or_model, str | Path):
            name_or_model, _ = load_backbone(name_or_model, dtype=dtype, device=device)
        return cls(name_or_model, OptionConfig() if config is None else config)

    def train(self, mode: bool = True) -> "OptionModel":
        """Switch the plug-in's mode; the frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    @torch.no_grad()
    def hidden_states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """h_t, the tensor that the output head reads: token ids (B, T) -> (B, T, H)."""
        return last_hidden_states(self.backbone, input_ids, attention_mask)

    def lm_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The backbone's own logits, soft-capping included: (..., H) -> (..., V)."""
        return self.head(hidden_states)

    def option_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits of the policy pi(z | h_t): (..., H) -> (..., K)."""
        return self.adapter.option_logits(hidden_states)

    def decode_options(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits of the next token under every option (OLLM, eq. 2-3): (..., H) -> (..., K, V)."""
        return self.lm_logits(self.adapter.biased(hidden_states))

    @torch.no_grad()
    def option_tokens(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Most probable token under every option: (..., H) -> (..., K)."""
        return option_tokens(self.adapter, self.head, hidden_states)

    def generate(self, input_ids: torch.Tensor, *, option: Option = "policy", **arguments: Any) -> Any:
        """Write completions with transformers' ``generate``, which takes ``arguments`` and gives the result.

        Args:
            input_ids: Prompts, (B, T), padded on the left; give ``attention_mask`` (B, T) too if padded.
            option: ``policy``: the policy's distribution over the tokens of the options, greedy or sampled as
                ``do_sample`` says. ``sampled``: an option drawn from the policy per token, and its most probable token.
                A number z, or one per prompt, (B,): always the distribution under option z.
            arguments: Such as ``max_new_tokens``, ``do_sample``, ``temperature``, ``top_p``, ``num_beams``.
        """
        check_token_ids(input_ids)
        check_option(option, self.option_config.num_options, len(input_ids))
        return generate_with(
            self.backbone,
            lambda hidden: chosen_logits(self.decode_options(hidden), self.option_logits(hidden), option),
            input_ids,
            arguments,
        )

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> OptionOutput:
        """The option loss of a batch of token ids; arguments as for ``counted_states``.

        Raises:
            ValueError: If no token counts, or as ``counted_states``.
        """
        return self.loss(self.counted_states(input_ids, labels, attention_mask))

    def loss(self, states: CountedStates) -> OptionOutput:
        """E_q[CE] + beta * KL(q || prior) + L_policy (OLLM, eq. 4-6), by the settings' estimator, prior and objective.

        With the policy as the prior, the KL term trains only the encoder: its gradient in the policy is that of
        L_policy by imitation, which is already in the sum. So at beta = 1 the gradient is that of the negative evidence
        lower bound E_q[CE] + KL(q || pi), which bounds -log sum_z pi(z) p(x | h, z) from above.

        Raises:
            ValueError: If no token counts.
        """
        config, targets = self.option_config, states.targets
        hidden = states.hidden_states.to(self.backbone.dtype)  # stored ones are in bfloat16
        if not len(targets):
            raise ValueError("labels hold no token that counts (all are -100); check the completions")
        encoder_logits = self.adapter.encode(hidden, self.backbone.get_input_embeddings()(targets))
        policy_logits = self.option_logits(hidden)
        if config.estimator == "exact":
            losses = self.option_cross_entropy(hidden, targets)
            cross_entropy = expected_cross_entropy(encoder_logits, losses)
        else:
            one_hot = sample_options(encoder_logits, config.gumbel_temperature)
            biases = each_chunk(self.adapter.mixed_bias, hidden, one_hot, size=self.adapter.rows_at_once)
            cross_entropy = self._cross_entropy(hidden, torch.cat(list(biases)), targets).mean()
        kl = kl_to_prior(encoder_logits, policy_logits.detach() if config.prior == "policy" else None)
        if config.policy_by_likelihood:
            policy_loss = policy_marginal_loss(policy_logits, losses)
        else:
            policy_loss = policy_imitation_loss(policy_logits, encoder_logits)
        return OptionOutput(
            # A copy, because the weight may be updated before the backward pass.
            loss=cross_entropy + self.adapter.kl_weight.weight.clone() * kl + policy_loss,
            cross_entropy=cross_entropy.detach(),
            kl=kl.detach(),
            policy_loss=policy_loss.detach(),
            option_probs=encoder_logits.detach().softmax(-1),
        )

    def option_cross_entropy(self, hidden_states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """-log p(x_{t+1} | h_t, z) of every option, in nats: (N, H), (N,) -> (N, K)."""
        losses, start = [], 0
        for biases in each_chunk(self.adapter.biases, hidden_states, size=self.adapter.rows_at_once):
            count, num_options, _ = biases.shape
            hidden, option_targets = (each[start : start + count, None] for each in (hidden_states, targets))
            of_part = self._cross_entropy(hidden, biases, option_targets.expand(count, num_options).flatten())
            losses.append(of_part.view(count, num_options))
            start += count
        return torch.cat(losses)

    def _cross_entropy(self, hidden_states: torch.Tensor, biases: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of biased hidden states, (M, H) or more dimensions, for their M targets: (M,)."""
        shifted = (hidden_states + biases.to(hidden_states.dtype)).flatten(0, -2)
        return token_cross_entropy(shifted, self.head.linear, targets, soft_cap=self.head.soft_cap)

    @torch.no_grad()
    def counted_states(
        self, input_ids: torch.Tensor, labels: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> CountedStates:
        """Run the frozen backbone and return the training data of the plug-in.

        Rows of similar length share a pass, so that one long solution does not pad the whole batch.

        Args:
            input_ids: (B, T), padded on the right.
            labels: (B, T), as in transformers: -100 for tokens that do not count.
            attention_mask: (B, T).

        Raises:
            ValueError: If a row is padded on the left, or labels count padding.
        """
        check_token_ids(input_ids)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if not attention_mask[:, 0].all():
            raise ValueError("input_ids are padded on the left; pad on the right (tokenizer.padding_side='right')")
        counted = labels[:, 1:] != IGNORED
        if (counted & (attention_mask[:, 1:] == 0)).any():
            raise ValueError(f"labels count padding, where attention_mask is 0; set them to {IGNORED} there")
        lengths = attention_mask.sum(1)
        hidden = torch.empty(*input_ids.shape, self.hidden_size, dtype=self.backbone.dtype, device=input_ids.device)
        for rows in lengths.argsort().split(ROWS_TOGETHER.get(input_ids.device.type, 8)):
            width = int(lengths[rows].max())
            hidden[rows, :width] = self.hidden_states(input_ids[rows, :width], attention_mask[rows, :width])
        offsets = counted.cumsum(1) - 1
        return CountedStates(hidden[:, :-1][counted], labels[:, 1:][counted], offsets[counted])

    def trainable_share(self) -> float:
        """Number of the plug-in's parameters divided by that of the backbone."""
        return sum(parameter.numel() for parameter in self.adapter.parameters()) / self.backbone.num_parameters()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the plug-in's weights and settings, without the backbone."""
        description = {
            **dataclasses.asdict(self.option_config),
            "width": self.width,
            "hidden_size": self.hidden_size,
            "vocab_size": self.vocab_size,
            "backbone": self.backbone.config.name_or_path,
            "backbone_fingerprint": fingerprint(self.backbone),
        }
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.adapter.state_dict().items()}
        write_atomic(Path(folder) / WEIGHTS_FILE, sealed_weights(state))
        write_atomic(Path(folder) / OPTION_FILE, json.dumps(description, indent=2))

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the plug-in with a generated model card and return the repository's URL; see ``hub.push_to_hub``."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return hub.push_to_hub(folder, repo_id, private=private, token=token)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        backbone: str | PreTrainedModel | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "OptionModel":
        """Load a plug-in written by ``save_pretrained`` onto its backbone.

        Args:
            folder: Folder of the plug-in, or a repository ``user/name`` on the Hugging Face hub.
            backbone: A model or its name. None loads the backbone that the plug-in names.
            dtype: Precision of a backbone loaded by name.
            device: Device of a backbone loaded by name.

        Raises:
            MissingError: If the folder holds no plug-in.
            ValueError: If the backbone is not the one that the plug-in was trained on, or the file is damaged.
        """
        folder = hub.local_folder(folder)
        path = config_file(folder)
        description = read_object(path)
        if "peft_type" in description:
            raise MissingError(f"{folder} holds a peft adapter, not an option plug-in; give an option SFT run")
        try:
            name, trained_on = str(description["backbone"]), description["backbone_fingerprint"]
            config = OptionConfig(**{field.name: description[field.name] for field in dataclasses.fields(OptionConfig)})
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} cannot be read ({type(error).__name__}: {error}); copy it again") from error
        source = (resolve(folder).trained_on or name) if backbone is None else backbone
        loaded = load_backbone(source, dtype=dtype, device=device)[0] if isinstance(source, str) else source
        actual = fingerprint(loaded)
        if actual != trained_on:
            raise UsageError(
                f"{folder} was trained on backbone {name!r} with fingerprint {trained_on}, but "
                f"{loaded.config.name_or_path!r} has {actual}; give the backbone it was trained on"
            )
        model = cls(loaded, config)
        model.load_adapter(folder)
        return model

    def load_adapter(self, folder: str | Path) -> None:
        """Read the plug-in's weights from a folder written by ``save_pretrained``.

        Raises:
            UsageError: If the file is damaged, or a tensor has another shape or is not finite.
        """
        try:
            check_file(Path(folder) / WEIGHTS_FILE)
            weights = load_file(Path(folder) / WEIGHTS_FILE)
            self.adapter.load_state_dict(weights)
        except (DamagedError, SafetensorError, OSError, RuntimeError) as error:
            # torch names the tensors and their sizes in the lines after the first.
            raise UsageError(
                f"{folder}/{WEIGHTS_FILE} cannot be read ({one_line(error)}); train or download it again"
            ) from error
        if (broken := not_finite(weights)) is not None:
            raise UsageError(f"{broken} in {folder}/{WEIGHTS_FILE} is not finite; train or download it again")
