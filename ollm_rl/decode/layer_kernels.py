"""The small operations of a layer as one Triton kernel each: its norms, and the gate of its MLP (SwiGLU, Shazeer 2020).

Letters: B rows, H hidden, F features.
"""

import torch
import triton
import triton.language as tl

BLOCK = 1024  # features per program


@triton.jit
def _normed(inputs, weight, out, size, eps, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = columns < size
    numbers = tl.load(inputs + row * size + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(numbers * numbers, 0) / size + eps)
    factors = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + columns, (numbers * scale * factors).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _silu_times(gate_and_up, out, features, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < features
    start = gate_and_up + row * 2 * features
    gate = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(start + features + columns, mask=inside, other=0.0).to(tl.float32)
    product = gate * tl.sigmoid(gate) * up
    tl.store(out + row * features + columns, product.to(out.dtype.element_ty), mask=inside)


def normed(inputs: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm (Zhang and Sennrich 2019): (B, H), contiguous, with weight (H,) -> (B, H)."""
    rows, size = inputs.shape
    assert inputs.is_contiguous() and weight.is_contiguous()
    out, block = torch.empty_like(inputs), triton.next_power_of_2(size)
    _normed[(rows,)](inputs, weight, out, size, eps, BLOCK=block, num_warps=min(8, max(1, block // 512)))
    return out


def silu_times(gate_and_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of rows in which both lie side by side: (B, 2 F), contiguous -> (B, F)."""
    rows, features = len(gate_and_up), gate_and_up.shape[1] // 2
    assert gate_and_up.is_contiguous()
    out = gate_and_up.new_empty(rows, features)
    _silu_times[(rows, triton.cdiv(features, BLOCK))](gate_and_up, out, features, BLOCK=BLOCK)
    return out
