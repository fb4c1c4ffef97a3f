"""The most probable token under every option, on a CPU in fewer products where the decoder is narrow.

Under option k the logits are U (h + c + D g_k) = U (h + c) + (U D) g_k, with the output head U, and D, c and g_k the
weight, bias and input of the decoder's last layer. So the head multiplies W columns of D once for all rows, in place
of K biased states of each.

Letters: B rows, H hidden, W width, K options, V vocabulary.
"""

import torch
from torch import nn
from torch.nn import functional as F

from ollm_rl.backbones.output_head import OutputHead
from ollm_rl.options.adapter import OptionAdapter


def option_tokens(adapter: OptionAdapter, head: OutputHead, hidden_states: torch.Tensor) -> torch.Tensor:
    """Most probable token under every option, without gradient: (..., H) -> (..., K)."""
    rows = hidden_states.reshape(-1, hidden_states.shape[-1])
    if not (is_plain(adapter, head, rows) and takes_fewer_products(len(rows), adapter)):
        return head.most_probable(adapter.biased(hidden_states))
    last = adapter.decoder_out
    logits = F.linear(torch.cat([rows + last.bias, last.weight.T]), head.linear.weight)
    of_rows, of_width = logits[: len(rows)], logits[len(rows) :]
    if head.linear.bias is not None:
        of_rows = of_rows + head.linear.bias
    logits = torch.baddbmm(of_rows[:, None], adapter.activations(rows), of_width.expand(len(rows), -1, -1))
    return head.highest(head.capped(logits)).view(*hidden_states.shape[:-1], -1)


def is_plain(adapter: OptionAdapter, head: OutputHead, rows: torch.Tensor) -> bool:
    """Whether the logits are sums as above, and in float32, in which their order hardly depends on how they are summed.

    Not on CUDA, where one kernel computes the products and finds the highest.
    """
    linear = head.linear
    in_float = rows.device.type == "cpu" and rows.dtype == torch.float32 == linear.weight.dtype
    return in_float and type(linear) is nn.Linear and not adapter.identity_option


def takes_fewer_products(count: int, adapter: OptionAdapter) -> bool:
    """Whether `option_tokens` saves at least half of the multiplications for ``count`` rows.

    Less is not worth it: these products are smaller, and so less efficient.
    """
    (num_options, width), size = adapter.option_embedding.shape, adapter.decoder_out.out_features
    return 2 * ((count + width) * size + count * num_options * width) <= count * num_options * size
