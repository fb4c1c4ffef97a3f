"""The kernel of a step's attention, against torch's own in float32."""

import pytest
import torch
from torch.nn import functional as F

from ollm_rl.devices import HAS_TRITON

if HAS_TRITON:
    from ollm_rl.decode.row_kernel import attend_live

pytestmark = pytest.mark.skipif(not (HAS_TRITON and torch.cuda.is_available()), reason="needs a CUDA device and Triton")


@pytest.mark.parametrize(("heads", "key_heads", "size"), [(6, 2, 16), (9, 3, 64), (4, 4, 24), (12, 2, 128)])
def test_a_row_reads_its_live_part_and_the_beginning_from_where_it_is_shared(
    heads: int, key_heads: int, size: int
) -> None:
    torch.manual_seed(0)
    length, positions = 200, torch.tensor([198, 70, 64, 150, 41])
    sources, shared = torch.tensor([0, 0, 0, 3, 3]), torch.tensor([63, 63, 64, 40, 40])
    queries = torch.randn(5, heads, 1, size)
    keys, values = torch.randn(2, 5, key_heads, length, size)
    live = torch.arange(length) <= positions[:, None]
    mask = torch.zeros(5, 1, 1, length).masked_fill(~live[:, None, None], torch.finfo(torch.float32).min)
    read_keys, read_values = keys.clone(), values.clone()
    for row, (source, count) in enumerate(zip(sources.tolist(), shared.tolist(), strict=True)):
        read_keys[row, :, :count], read_values[row, :, :count] = keys[source, :, :count], values[source, :, :count]
    expected = F.scaled_dot_product_attention(queries, read_keys, read_values, attn_mask=mask, enable_gqa=True)
    queries, keys, values, mask, positions, sources, shared = (
        each.cuda() for each in (queries, keys, values, mask, positions, sources, shared)
    )
    found = attend_live(queries, keys, values, mask, positions, sources, shared, size**-0.5)
    torch.testing.assert_close(found.cpu(), expected.transpose(1, 2), rtol=1e-4, atol=1e-4)
