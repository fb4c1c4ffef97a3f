"""The option model: a frozen backbone with K learned next-token options (OLLM, Sec. 2.2).

Letters: B batch, T tokens, N counted positions, H hidden, K options, V vocabulary; ``...`` any leading dimensions.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from transformers import PreTrainedModel

from ollm_rl.adapter import OptionAdapter, default_width
from ollm_rl.backbones import fingerprint, load_backbone
from ollm_rl.config import OptionConfig
from ollm_rl.losses import (
    expected_cross_entropy,
    kl_to_uniform,
    option_cross_entropy,
    policy_imitation_loss,
)
from ollm_rl.runs import write_atomic

ROWS_TOGETHER = 8  # sequences of like length in one pass of the frozen backbone
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


@dataclass(kw_only=True)
class OptionOutput:
    """Losses (nats, mean over the N counted positions) and what the options said at those positions.

    Attributes:
        loss: L_CE + beta * L_KL + L_policy, with gradient.
        cross_entropy: L_CE (eq. 4).
        kl: L_KL (eq. 5).
        policy_loss: L_policy (eq. 6).
        option_probs: q(z | h_t, e(x_{t+1})), (N, K).
        option_tokens: Most probable token under every option, (N, K).
        targets: The true next tokens, (N,).
    """

    loss: torch.Tensor
    cross_entropy: torch.Tensor
    kl: torch.Tensor
    policy_loss: torch.Tensor
    option_probs: torch.Tensor
    option_tokens: torch.Tensor
    targets: torch.Tensor

    def metrics(self) -> dict[str, float]:
        """Scalars to log.

        Losses in nats; usage as the entropy of the mean of q over log K (1: all options used alike); distinct tokens
        among the options per position; share of targets that some option names (oracle).
        """
        mean_probs = self.option_probs.mean(0)
        usage = -(mean_probs * mean_probs.clamp_min(1e-12).log()).sum() / math.log(len(mean_probs))
        ordered = self.option_tokens.sort(-1).values
        distinct = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(-1).float().mean()
        oracle = (self.option_tokens == self.targets[:, None]).any(-1).float().mean()
        values = {
            "cross_entropy": self.cross_entropy,
            "kl": self.kl,
            "policy_loss": self.policy_loss,
            "option_usage": usage,
            "distinct_tokens": distinct,
            "oracle_token_accuracy": oracle,
        }
        return {name: float(value.detach()) for name, value in values.items()}


class OptionModel(nn.Module):
    """A causal language model with options. The backbone's weights never move.

    Build one with ``from_backbone``, or load a trained plug-in with ``from_pretrained``.

    Attributes:
        backbone: The frozen language model.
        adapter: The trainable plug-in.
        option_config: Its settings.
    """

    def __init__(self, backbone: PreTrainedModel, config: OptionConfig) -> None:
        super().__init__()
        if backbone.get_output_embeddings() is None or backbone.get_input_embeddings() is None:
            raise ValueError(
                f"{type(backbone).__name__} has no usable output head; give a causal language model with "
                "get_input_embeddings() and get_output_embeddings()"
            )
        text_config = backbone.config.get_text_config()
        self.backbone = backbone.requires_grad_(False).eval()
        self.option_config = config
        self.hidden_size: int = text_config.hidden_size
        self.vocab_size: int = backbone.get_output_embeddings().weight.shape[0]
        self.soft_cap: float | None = getattr(text_config, "final_logit_softcapping", None)
        parameters = sum(parameter.numel() for parameter in backbone.parameters())
        width = config.width or default_width(config, self.hidden_size, parameters)
        self.adapter = OptionAdapter(config, self.hidden_size, width).to(backbone.device)
        self.width = width
        self._check_head()

    @classmethod
    def from_backbone(
        cls,
        name_or_model: str | PreTrainedModel,
        config: OptionConfig | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "OptionModel":
        """Give a causal language model options that are still untrained.

        Args:
            name_or_model: A name that ``load_backbone`` knows, or a model.
            config: Settings; the paper's where left out.
            dtype: Precision of a backbone loaded by name.
            device: Where a backbone loaded by name lives.

        Raises:
            ValueError: If there is no such model, or its output head is not supported.
        """
        if isinstance(name_or_model, str):
            name_or_model, _ = load_backbone(name_or_model, dtype=dtype, device=device)
        return cls(name_or_model, config or OptionConfig())

    def train(self, mode: bool = True) -> "OptionModel":
        """Switch the plug-in's mode; the frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    @torch.no_grad()
    def hidden_states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """h_t, the tensor that the output head reads: token ids (B, T) -> (B, T, H)."""
        output = self.backbone.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return output.last_hidden_state

    def lm_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The backbone's own logits, soft-capping included: (..., H) -> (..., V)."""
        logits = self.backbone.get_output_embeddings()(hidden_states)
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits

    def option_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits of the policy pi(z | h_t): (..., H) -> (..., K)."""
        return self.adapter.option_logits(hidden_states)

    def decode_options(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits of the next token under every option (OLLM, eq. 2-3): (..., H) -> (..., K, V)."""
        biases = self.adapter.biases(hidden_states).to(hidden_states.dtype)
        return self.lm_logits(hidden_states[..., None, :] + biases)

    @torch.no_grad()
    def option_tokens(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Most probable token under every option: (..., H) -> (..., K)."""
        return self.decode_options(hidden_states).argmax(-1)

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> OptionOutput:
        """The paper's loss, the expectation over options summed exactly (OLLM, eq. 4-6).

        Args:
            input_ids: (B, T).
            labels: (B, T), as in transformers: -100 where a token does not count.
            attention_mask: (B, T).

        Raises:
            ValueError: If no token counts.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if not attention_mask[:, 0].all():
            raise ValueError("input_ids are padded on the left; pad on the right (tokenizer.padding_side='right')")
        hidden, targets = self._counted_states(input_ids, labels, attention_mask)
        if not len(targets):
            raise ValueError("labels hold no token that counts (all are -100); check the completions")
        encoder_logits = self.adapter.encode(hidden, self.backbone.get_input_embeddings()(targets))
        cross_entropies, option_tokens = option_cross_entropy(
            self.decode_options, hidden, targets, num_options=self.option_config.num_options, vocab_size=self.vocab_size
        )
        cross_entropy = expected_cross_entropy(encoder_logits, cross_entropies)
        kl = kl_to_uniform(encoder_logits)
        policy_loss = policy_imitation_loss(self.option_logits(hidden), encoder_logits)
        return OptionOutput(
            loss=cross_entropy + float(self.adapter.kl_weight.weight) * kl + policy_loss,
            cross_entropy=cross_entropy,
            kl=kl,
            policy_loss=policy_loss,
            option_probs=encoder_logits.detach().softmax(-1),
            option_tokens=option_tokens,
            targets=targets,
        )

    def _counted_states(
        self, input_ids: torch.Tensor, labels: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """h_t and the next token at the counted positions: (N, H), (N,).

        The frozen backbone reads rows of like length together, so that a batch with one long solution is not padded
        whole.
        """
        lengths = attention_mask.sum(1)
        states, targets = [], []
        for rows in lengths.argsort().split(ROWS_TOGETHER):
            width = int(lengths[rows].max())
            following = labels[rows, 1:width]
            hidden = self.hidden_states(input_ids[rows, :width], attention_mask[rows, :width])
            states.append(hidden[:, :-1][following != -100])
            targets.append(following[following != -100])
        return torch.cat(states), torch.cat(targets)

    def trainable_share(self) -> float:
        """Parameters of the plug-in over those of the backbone."""
        adapter = sum(parameter.numel() for parameter in self.adapter.parameters())
        return adapter / sum(parameter.numel() for parameter in self.backbone.parameters())

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
        write_atomic(Path(folder) / WEIGHTS_FILE, save(state))
        write_atomic(Path(folder) / CONFIG_FILE, json.dumps(description, indent=2))

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
            folder: Where the plug-in lies.
            backbone: A model or name; the backbone that the plug-in names where left out.
            dtype: Precision of a backbone loaded by name.
            device: Where a backbone loaded by name lives.

        Raises:
            FileNotFoundError: If the folder holds no plug-in.
            ValueError: If the backbone is not the one that the plug-in was trained on, or the file is damaged.
        """
        path = Path(folder) / CONFIG_FILE
        if not path.exists():
            raise FileNotFoundError(f"{folder} holds no option plug-in (no {CONFIG_FILE}); train one with ollm-rl sft")
        try:
            description = json.loads(path.read_text())
            name, trained_on = str(description["backbone"]), description["backbone_fingerprint"]
            config = OptionConfig(**{field.name: description[field.name] for field in dataclasses.fields(OptionConfig)})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}); copy it anew") from error
        wanted = name if backbone is None else backbone
        loaded = load_backbone(wanted, dtype=dtype, device=device)[0] if isinstance(wanted, str) else wanted
        found = fingerprint(loaded)
        if found != trained_on:
            raise ValueError(
                f"{folder} was trained on backbone {name!r} with fingerprint {trained_on}, but "
                f"{loaded.config.name_or_path!r} has {found}; give the backbone it was trained on"
            )
        model = cls(loaded, config)
        model.load_adapter(folder)
        return model

    def load_adapter(self, folder: str | Path) -> None:
        """Read the plug-in's weights from a folder written by ``save_pretrained``.

        Raises:
            ValueError: If the file is damaged or of another shape.
        """
        try:
            self.adapter.load_state_dict(load_file(Path(folder) / WEIGHTS_FILE))
        except (SafetensorError, OSError, RuntimeError) as error:
            # torch says "Error(s) in loading" first and names the tensors and their sizes in the lines below it.
            raise ValueError(f"{folder}/{WEIGHTS_FILE} cannot be read ({' '.join(str(error).split())})") from error

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuse a backbone that treats its logits in a way that ``lm_logits`` does not know."""
        probe = torch.arange(1, 5, device=self.backbone.device)[None] % self.vocab_size
        expected = self.backbone(input_ids=probe, use_cache=False).logits
        found = self.lm_logits(self.hidden_states(probe))
        if expected.shape != found.shape or not torch.allclose(
            expected, found.to(expected.dtype), rtol=1e-2, atol=1e-2
        ):
            raise ValueError(
                f"{type(self.backbone).__name__} changes its logits after the output head in a way that is not "
                "supported; only plain heads and final_logit_softcapping are"
            )
