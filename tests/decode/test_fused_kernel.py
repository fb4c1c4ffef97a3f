"""The kernel of a step's rotary embedding, cache write and attention, against transformers' and torch's own."""

import pytest
import torch

from ollm_rl.decode.acceptance import FUSED_BLOCK
from ollm_rl.devices import HAS_TRITON
from tests.decode import rotary_attention

if HAS_TRITON:
    from ollm_rl.decode.fused_kernel import NARROW, WIDE, turn_and_attend

pytestmark = pytest.mark.skipif(not (HAS_TRITON and torch.cuda.is_available()), reason="needs a CUDA device and Triton")

POSITIONS = [0, 1, 31, 32, 64, 65, 198, 70]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize(
    ("heads", "key_heads", "size"), [(6, 2, 16), (4, 4, 32), (9, 3, 64), (20, 1, 64), (12, 2, 128)]
)
def test_keys_are_turned_and_stored_and_a_row_reads_its_live_part_and_the_beginning_from_where_it_is_shared(
    heads: int, key_heads: int, size: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    rows, slots, length = len(POSITIONS), len(POSITIONS) + 2, 200  # two slots are not in use
    positions, sources, shared = torch.tensor(POSITIONS), torch.arange(rows), torch.zeros(rows, dtype=torch.long)
    sources[7], shared[7] = 6, 37  # the last row reads its beginning from the row before
    states = torch.randn(2, slots, key_heads, length, size).to(dtype)
    # As joined products give them: parts of one tensor.
    joint = torch.randn(rows, 1, (heads + 2 * key_heads) * size).to(dtype)
    angles = torch.rand(rows, 1, size // 2).repeat(1, 1, 2) * 7
    cosines, sines = angles.cos().to(dtype), angles.sin().to(dtype)
    parts = [heads * size, key_heads * size, key_heads * size]
    expected_states = states.double()
    query, key, value = joint.double().split(parts, -1)
    expected = rotary_attention.turn_and_attend(
        query, key, value, cosines.double(), sines.double(), expected_states, positions, sources, shared, size**-0.5
    )
    states, joint, cosines, sines, positions, sources, shared = (
        each.cuda() for each in (states, joint, cosines, sines, positions, sources, shared)
    )
    before = states.clone()
    query, key, value = joint.split(parts, -1)
    found = turn_and_attend(query, key, value, cosines, sines, states, positions, sources, shared, size**-0.5)
    assert found.shape == (rows, 1, heads * size) and found.dtype == dtype
    torch.testing.assert_close(found.cpu().double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(states.cpu().double(), expected_states, rtol=tolerance, atol=tolerance)
    written = (states != before).any(-1)  # (2, slots, key heads, length)
    assert written.any(2).nonzero()[:, 1:].unique(dim=0).tolist() == [[row, at] for row, at in enumerate(POSITIONS)]


def test_the_trial_of_a_model_reaches_a_second_block_of_keys() -> None:
    assert max(NARROW[0], WIDE[0]) == FUSED_BLOCK
