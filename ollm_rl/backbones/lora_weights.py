"""The weights of a LoRA as an update's products read them: in the backbone's precision, those of one input joined.

Letters: G groups of n layers each, where the layers of a group read one input; r rank. A (r, in) and B (out, r) are a
layer's own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable


class JointWeights(torch.autograd.Function):
    """The A's of each group above one another, and its B's as the blocks of a diagonal, by a few kernels for all."""

    @staticmethod
    def forward(ctx: Any, precision: torch.dtype, rows: Sequence[int], *weights: torch.Tensor) -> Any:
        """G n A's and G n B's, group by group -> G (n r, in) and G (rows, n r), in ``precision``.

        Args:
            ctx: Of autograd.
            precision: That of the result.
            rows: The length of each B of a group, n of them.
            weights: All of one precision.
        """
        half, (rank, inputs) = len(weights) // 2, weights[0].shape
        ctx.rows, ctx.rank, ctx.precision = rows, rank, weights[0].dtype
        firsts = torch.cat(weights[:half]).to(precision).view(-1, len(rows) * rank, inputs)
        seconds = stacked = torch.cat(weights[half:]).to(precision).view(-1, sum(rows), rank)
        if len(rows) > 1:
            seconds = stacked.new_zeros(*stacked.shape[:2], len(rows) * rank)
            for block, part in zip(_blocks(seconds, rows, rank), stacked.split(rows, 1), strict=True):
                block.copy_(part)
        return *firsts.unbind(), *seconds.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Gradients of all A's and B's in their own precision."""
        half, rows, rank = len(gradients) // 2, ctx.rows, ctx.rank
        firsts = torch.cat(gradients[:half]).to(ctx.precision)
        seconds = torch.stack(gradients[half:]).to(ctx.precision)
        if len(rows) > 1:
            seconds = torch.cat(_blocks(seconds, rows, rank), 1)
        return None, None, *firsts.split(rank), *seconds.view(-1, rank).split(list(rows) * half)


def _blocks(matrices: torch.Tensor, rows: Sequence[int], rank: int) -> list[torch.Tensor]:
    """The blocks of the diagonal: (G, rows, n r) -> n of (G, rows of the block, r), views."""
    return [part[..., index * rank : (index + 1) * rank] for index, part in enumerate(matrices.split(rows, 1))]


class Cast(torch.autograd.Function):
    """Weights in another precision, all by one kernel, and their gradients back by another."""

    @staticmethod
    def forward(ctx: Any, precision: torch.dtype, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tensors of any shapes and one precision -> the same in ``precision``."""
        ctx.precision = weights[0].dtype
        return _cast(weights, precision)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """The gradients in the weights' own precision; zeros where there is none."""
        return None, *_cast(gradients, ctx.precision)


def _cast(tensors: Sequence[torch.Tensor], precision: torch.dtype) -> tuple[torch.Tensor, ...]:
    parts = torch.cat([tensor.flatten() for tensor in tensors]).to(precision).split([t.numel() for t in tensors])
    return tuple(part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))
