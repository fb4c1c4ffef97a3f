"""Joins linear layers with the same input into one matrix product: queries, keys and values, or an MLP's halves.

A decoding step has few rows, so a product's time is that of its launch and of reading the weights. One large product is
faster than three small ones.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ollm_rl.backbones.replaced import replaced
from ollm_rl.backbones.shared_inputs import concatenated, one_for_all, shared_inputs


class JointProduct:
    """Frozen linear layers that are called one after the other with the same input.

    Their weights become views of one tensor and keep their values, so later in-place changes to them take effect here.

    Args:
        layers: The layers, in the order in which a pass calls them.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._weight = concatenated([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._bias = concatenated(biases) if biases else None
        self._rows = [layer.out_features for layer in layers]
        self.forwards = one_for_all(layers, self._outputs)

    def _outputs(self, inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        """The outputs of all layers: (..., inputs) -> (..., outputs) each."""
        return F.linear(inputs, self._weight, self._bias).split(self._rows, -1)


def joint_products(backbone: PreTrainedModel) -> list[JointProduct]:
    """Find the layers that get the same input in a pass over one token, and join them.

    Trainable layers and layers of other types (of a LoRA, or quantized) are not joined.
    """
    kinds = {
        module: (module.weight.dtype, module.bias is None)
        for module in backbone.base_model.modules()
        # A replaced forward belongs to other code, so such a layer is left out.
        if type(module) is nn.Linear and not module.weight.requires_grad and "forward" not in vars(module)
    }
    return [JointProduct(group) for group in shared_inputs(backbone, kinds)]


@contextmanager
def joined(products: Sequence[JointProduct]) -> Iterator[None]:
    """Within this context the layers compute their products jointly; outside of it they are unchanged."""
    with replaced(pair for product in products for pair in product.forwards):
        yield
