"""The kernel of a step's attention, against torch's own in float32."""

import pytest
import torch
from torch.nn import functional as F

from ollm_rl.devices import HAS_TRITON
from ollm_rl.row_cache import EncodedPrompt
from ollm_rl.row_tiles import tile_rows

if HAS_TRITON:
    from ollm_rl.row_kernel import attend_live

pytestmark = pytest.mark.skipif(not (HAS_TRITON and torch.cuda.is_available()), reason="needs a CUDA device and Triton")


@pytest.mark.parametrize(("heads", "key_heads", "size"), [(6, 2, 16), (9, 3, 64), (4, 4, 24), (12, 2, 128)])
def test_a_row_reads_its_live_part_and_the_beginning_from_where_it_is_shared(
    heads: int, key_heads: int, size: int
) -> None:
    torch.manual_seed(0)
    length, positions = 200, torch.tensor([198, 70, 64, 150, 41, 3, 190])
    common = EncodedPrompt(63)
    tiles = torch.tensor(tile_rows([common, common, None, common, None, None, common]))
    queries = torch.randn(7, heads, 1, size)
    keys, values = torch.randn(2, 7, key_heads, length, size)
    live = torch.arange(length) <= positions[:, None]
    live[6, :70] = False  # as where a window slides
    mask = torch.zeros(7, 1, 1, length).masked_fill(~live[:, None, None], torch.finfo(torch.float32).min)
    read_keys, read_values = keys.clone(), values.clone()
    for row in (1, 3, 6):  # theirs is as good, but not read
        read_keys[row, :, :63], read_values[row, :, :63] = keys[0, :, :63], values[0, :, :63]
    expected = F.scaled_dot_product_attention(queries, read_keys, read_values, attn_mask=mask, enable_gqa=True)
    queries, keys, values, mask, positions, tiles = (
        each.cuda() for each in (queries, keys, values, mask, positions, tiles)
    )
    found = attend_live(queries, keys, values, mask, positions, tiles, size**-0.5)
    torch.testing.assert_close(found.cpu(), expected.transpose(1, 2), rtol=1e-4, atol=1e-4)
