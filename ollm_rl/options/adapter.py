"""The plug-in's trainable parts: encoder (OLLM, eq. 1), decoder (eq. 2) and policy (eq. 6).

Letters: H hidden, W width, K options; ``...`` any leading dimensions.
"""

import torch
from torch import nn
from torch.nn import functional as F

from ollm_rl.errors import UsageError
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.losses import AdaptiveKLWeight

MAX_ACTIVATIONS = 2**28  # of the decoder's GELU: 1 GiB of inputs and 1 GiB of outputs in float32
MAX_SHARE = 0.02  # of the backbone's parameters, if no width is set


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """A normalized perceptron with one hidden layer: (..., inputs) -> (..., outputs)."""
    return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))


class OptionAdapter(nn.Module):
    """Encoder, decoder and policy, in float32 for any precision of the backbone.

    Args:
        config: Settings of the plug-in.
        hidden_size: H.
        width: W.
    """

    def __init__(self, config: OptionConfig, hidden_size: int, width: int) -> None:
        super().__init__()
        self.encoder = mlp(2 * hidden_size, width, config.num_options)
        self.decoder_norm = nn.LayerNorm(hidden_size)
        self.decoder_in = nn.Linear(hidden_size, width)
        self.identity_option = config.identity_option
        self.option_embedding = nn.Parameter(torch.randn(config.num_options - config.identity_option, width))
        self.decoder_out = nn.Linear(width, hidden_size)
        self.policy = mlp(hidden_size, width, config.num_options)
        # With the policy as the prior a weight of 1 is the evidence lower bound, which does not change if a prediction
        # is split into options. A weight above 1 rewards making all options alike.
        max_weight = 1.0 if config.prior == "policy" else 10.0
        kl_target = config.kl_target if config.num_options > 1 else None  # the KL of one option is 0
        self.kl_weight = AdaptiveKLWeight(kl_target, config.kl_weight_init, max_weight=max_weight)

    def encode(self, hidden_states: torch.Tensor, next_embeddings: torch.Tensor) -> torch.Tensor:
        """Logits of q(z | h_t, e(x_{t+1})): (..., H), (..., H) -> (..., K)."""
        # The inputs differ in scale by orders of magnitude, so each is normalized before they are joined.
        inputs = [F.layer_norm(x.float(), x.shape[-1:]) for x in (hidden_states, next_embeddings)]
        return self.encoder(torch.cat(inputs, -1))

    @property
    def rows_at_once(self) -> int:
        """Number of hidden states whose decoder activations, K * W for each, training keeps at a time."""
        return max(1, MAX_ACTIVATIONS // self.option_embedding.numel())

    def activations(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the decoder's last layer reads for every option but the identity: (..., H) -> (..., K, W)."""
        preactivations = self.decoder_in(self.decoder_norm(hidden_states.float()))[..., None, :] + self.option_embedding
        return F.gelu(preactivations)

    def biases(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The bias b_t of every option: (..., H) -> (..., K, H)."""
        biases = self.decoder_out(self.activations(hidden_states))
        return F.pad(biases, (0, 0, 1, 0)) if self.identity_option else biases

    def biased(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """h_t + b_t of every option: (..., H) -> (..., K, H).

        The biases are computed in the precision of the hidden states. Training computes them in float32.
        """
        dtype = hidden_states.dtype
        with torch.autocast(hidden_states.device.type, dtype, enabled=dtype != torch.float32):
            biases = self.biases(hidden_states).to(dtype)
        return hidden_states[..., None, :] + biases

    def mixed_bias(self, hidden_states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the options' biases: (..., H), (..., K) -> (..., H)."""
        if self.identity_option:
            weights = weights[..., 1:]
        # The last layer is linear, so the sum is taken before it: one matrix product instead of K.
        summed = (weights[..., None, :] @ self.activations(hidden_states))[..., 0, :]
        return F.linear(summed, self.decoder_out.weight) + weights.sum(-1, keepdim=True) * self.decoder_out.bias

    def option_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits of pi(z | h_t): (..., H) -> (..., K)."""
        return self.policy(hidden_states.float())


def default_width(config: OptionConfig, hidden_size: int, backbone_parameters: int) -> int:
    """The largest width, a multiple of 8 or below 8, with which the plug-in has at most MAX_SHARE of the parameters.

    Raises:
        UsageError: If not even a width of 1 fits.
    """

    def parameters(width: int) -> int:
        with torch.device("meta"):
            adapter = OptionAdapter(config, hidden_size, width)
        return sum(parameter.numel() for parameter in adapter.parameters())

    fixed = parameters(1)
    per_unit = parameters(2) - fixed
    width = 1 + int((MAX_SHARE * backbone_parameters - fixed) // per_unit)
    if width < 1:
        raise UsageError(
            f"num_options={config.num_options} needs more than {MAX_SHARE:.0%} of the backbone's {backbone_parameters} "
            "parameters at any width; set width yourself"
        )
    # More than the backbone's hidden size adds cost without a known gain.
    width = min(width, hidden_size)
    return width - width % 8 if width >= 8 else width
