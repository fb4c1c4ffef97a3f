"""The kernels of a layer's small operations against torch's own."""

import pytest
import torch
from torch.nn import functional as F

from ollm_rl.devices import HAS_TRITON

if HAS_TRITON:
    from ollm_rl.decode.layer_kernels import BLOCK, normed, silu_times

pytestmark = pytest.mark.skipif(not (HAS_TRITON and torch.cuda.is_available()), reason="needs a CUDA device and Triton")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])
@pytest.mark.parametrize("more", [-1000, 0, 7])
def test_a_row_is_multiplied_by_its_gate(more: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    rows = torch.randn(3, 2 * (BLOCK + more)).mul(5).to(dtype)
    gate, up = rows.double().chunk(2, -1)
    found = silu_times(rows.cuda())
    assert found.dtype == dtype
    torch.testing.assert_close(found.cpu().double(), F.silu(gate) * up, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])
@pytest.mark.parametrize("size", [7, 576, 1536])
def test_a_row_is_normed(size: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    rows, weight = torch.randn(3, size).mul(0.01).to(dtype), torch.rand(size).to(dtype)
    found = normed(rows.cuda(), weight.cuda(), 1e-5)
    assert found.dtype == dtype
    expected = F.rms_norm(rows.double(), (size,), weight.double(), 1e-5)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=tolerance, atol=tolerance)
