"""How a backbone computes logits from h_t: by its output head, for some models followed by a soft cap.

Letters: B batch, T tokens, H hidden, V vocabulary, C some tokens of it; ``...`` any leading dimensions.
"""

import warnings
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ollm_rl.backbones.plans import without_plans
from ollm_rl.backbones.vocabulary import suppressed_tokens
from ollm_rl.devices import HAS_TRITON
from ollm_rl.errors import RunWarning, UsageError, one_line
from ollm_rl.settings import shown

if HAS_TRITON:
    from ollm_rl.backbones.head_kernel import most_probable

# Up to this H, if it is a multiple of the other number, one kernel for product and maximum is used. On an H200 it takes
# 0.72 of the time of a product and its argmax at 576 and 0.83 at 1,536; wider heads were not measured.
KERNEL_HIDDEN_SIZE, KERNEL_ALIGNMENT = 1536, 8
NUMPY_LOGITS = 2**20  # up to this number of logits on a CPU numpy finds the highest ones


class OutputHead:
    """The output head of a causal language model, applicable to any hidden states.

    Args:
        backbone: The model; its weights are read at every call.

    Attributes:
        hidden_size: H.
        vocab_size: V.
        soft_cap: Logits x become cap * tanh(x / cap) (Gemma 2); None without a cap.

    Raises:
        UsageError: If the model has no output head, or changes its logits in an unsupported way.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        if backbone.get_output_embeddings() is None or backbone.get_input_embeddings() is None:
            raise UsageError(
                f"{type(backbone).__name__} has no usable output head; give a causal language model with "
                "get_input_embeddings() and get_output_embeddings()"
            )
        text_config = backbone.config.get_text_config()
        self._backbone = backbone
        self.vocab_size: int
        self.hidden_size: int
        self.vocab_size, self.hidden_size = self.linear.weight.shape
        self.soft_cap: float | None = getattr(text_config, "final_logit_softcapping", None)
        self._suppressed = torch.tensor(suppressed_tokens(backbone), dtype=torch.long, device=self.linear.weight.device)
        self._check()
        self._kernel = self._kernel_works()

    @property
    def linear(self) -> Any:
        """The backbone's own layer, (V, H)."""
        return self._backbone.get_output_embeddings()

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The backbone's logits, soft-capping included: (..., H) -> (..., V).

        Those of tokens that are never written (padded vocabularies) have the lowest number there is. It is finite, so
        that a probability of 0 times its logarithm is 0.
        """
        return self._without_suppressed(self.logits(hidden_states))

    def _without_suppressed(self, logits: torch.Tensor) -> torch.Tensor:
        if len(self._suppressed):
            self._suppressed = self._suppressed.to(logits.device)
            logits.index_fill_(-1, self._suppressed, torch.finfo(logits.dtype).min)
        return logits

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """As the model's own forward pass computes them, those of tokens that are never written too."""
        return self.capped(self.linear(hidden_states))

    def at(self, hidden_states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The logits of some tokens only, in float32: (..., H), (..., C) -> (..., C).

        The product is taken in float32 whatever the head's precision.
        """
        logits = (self.linear.weight[tokens].float() @ hidden_states.float()[..., None])[..., 0]
        if self.linear.bias is not None:
            logits = logits + self.linear.bias[tokens].float()
        return self.capped(logits)

    def most_probable(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The token with the highest logit, the first of several: (..., H) -> (...).

        Where it is faster, one kernel compares the logits before they are rounded to bfloat16. So it finds the higher
        of two that round to the same number. A soft cap changes no order, and is left out there.
        """
        if self._kernel and self._kernel_applies(hidden_states):
            rows = hidden_states.reshape(-1, self.hidden_size)
            return most_probable(rows, self.linear.weight, self._offsets()).view(hidden_states.shape[:-1])
        return self.highest(self.logits(hidden_states))

    def highest(self, logits: torch.Tensor) -> torch.Tensor:
        """The token with the highest logit, the first of several: (..., V) -> (...). The logits may be overwritten."""
        logits = self._without_suppressed(logits)
        # numpy compares many numbers at a time, but on one core.
        if logits.device.type == "cpu" and logits.dtype == torch.float32 and logits.numel() <= NUMPY_LOGITS:
            return torch.as_tensor(logits.detach().numpy().argmax(-1))
        return logits.argmax(-1)

    def _kernel_applies(self, hidden_states: torch.Tensor) -> bool:
        linear = self.linear
        plain = type(linear) is nn.Linear and linear.weight.dtype == hidden_states.dtype == torch.bfloat16
        fits = self.hidden_size <= KERNEL_HIDDEN_SIZE and self.hidden_size % KERNEL_ALIGNMENT == 0
        return HAS_TRITON and plain and hidden_states.is_cuda and fits

    def _offsets(self) -> torch.Tensor | None:
        """What is added to the product, (V,), with minus infinity for tokens that are never written."""
        bias = self.linear.bias
        if bias is None and not len(self._suppressed):
            return None
        offsets = torch.zeros_like(self.linear.weight[:, 0], dtype=torch.float32) if bias is None else bias.float()
        return offsets.index_fill(0, self._suppressed.to(offsets.device), -torch.inf)

    @torch.no_grad()
    def _kernel_works(self) -> bool:
        """Whether the kernel finds the highest logits of a few hidden states, up to rounding."""
        rows = self.linear.weight[:: max(1, self.vocab_size // 64)]
        if not self._kernel_applies(rows):
            return False
        try:
            tokens = most_probable(rows, self.linear.weight, self._offsets())
            logits = self(rows).float()
            highest, found = logits.max(-1).values, logits.gather(-1, tokens[:, None])[:, 0]
            if bool((highest - found <= 0.02 * highest.abs() + 1e-3).all()):
                return True
            problem = "it finds other tokens than the product"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler of kernels raises
            problem = f"{type(error).__name__}: {one_line(error)}"
        message = f"the kernel for the most probable token does not work here ({problem}); decoding is slower"
        warnings.warn(message, RunWarning, stacklevel=2)
        return False

    def capped(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits after the model's soft cap, if it has one (Gemma 2): (...) -> (...)."""
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits

    @torch.no_grad()
    def _check(self) -> None:
        """Compare with the backbone's own logits on a few tokens."""
        name = type(self._backbone).__name__
        probe = torch.arange(1, 5, device=self._backbone.device)[None] % self.vocab_size
        try:
            expected = self._backbone(input_ids=probe, use_cache=False).logits
            logits = self.logits(last_hidden_states(self._backbone, probe)).to(expected.dtype)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever an unknown architecture raises
            raise UsageError(
                f"{name} does not compute logits by an output head on its last hidden states ({type(error).__name__}: "
                f"{one_line(error)}); it is not supported"
            ) from error
        # Relative, because random or scaled models have small logits.
        if expected.shape != logits.shape or not (expected - logits).norm() <= 0.02 * expected.norm():
            raise UsageError(
                f"{name} changes its logits after the output head in a way that is not supported; only plain heads and "
                "final_logit_softcapping are"
            )


def check_token_ids(input_ids: Any) -> None:
    """Refuse what is no tensor of token ids, (B, T), such as a text.

    Raises:
        UsageError: It says how to make one.
    """
    if not isinstance(input_ids, torch.Tensor):
        given = f"={shown(input_ids)} is"
    elif input_ids.dim() != 2 or input_ids.dtype not in (torch.int64, torch.int32):
        given = f" of shape {tuple(input_ids.shape)} and type {input_ids.dtype} is"
    else:
        return
    raise UsageError(
        f"input_ids{given} no tensor of token ids (rows, tokens); give tokenizer(texts, return_tensors='pt', "
        "padding=True).input_ids"
    )


def last_hidden_states(
    backbone: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """h_t, the tensor that the output head reads: token ids (B, T) -> (B, T, H).

    Raises:
        UsageError: If ``input_ids`` are no token ids.
    """
    check_token_ids(input_ids)
    with without_plans():
        output = backbone.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state
    return hidden
