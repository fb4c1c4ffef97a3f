"""Encodes prompts in passes of bounded size, equal ones once.

Letters: B prompts, R rows of a pass, T tokens, H hidden.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from ollm_rl.decode.row_cache import EncodedPrompt, Snapshot, stacked
from ollm_rl.devices import to_device

PASS_TOKENS = 16384  # per pass, padding included; bounds the memory of its activations
# On a CPU larger passes are slower: activations leave its cache, and prompts differ more in length.
CPU_PASS_TOKENS = 1024


def check_prompts(prompts: Sequence[Sequence[int]], *, max_length: int, vocab_size: int) -> None:
    """Refuse prompts that do not fit a slot.

    Raises:
        ValueError: If a prompt is empty, fills a whole slot or holds an unknown token.
    """
    for prompt in prompts:
        if not 0 < len(prompt) < max_length:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens does not fit a slot of {max_length} with room for more; shorten it "
                "or raise max_length"
            )
        for token in (min(prompt), max(prompt)):
            if not 0 <= token < vocab_size:
                raise ValueError(f"a prompt's token {token} is out of range; tokens go from 0 to {vocab_size - 1}")


def encode(
    model: Callable[..., BaseModelOutputWithPast],
    prompts: Sequence[tuple[int, ...]],
    device: torch.device,
    pass_tokens: int,
) -> Iterator[tuple[tuple[int, ...], Snapshot, int]]:
    """Run a model without its head over prompts, equal ones once.

    Yields each prompt with the snapshot that holds its state, and its row there.

    Prompts of similar length share a pass. A prompt longer than a pass is encoded in pieces.
    """
    waiting = sorted(dict.fromkeys(prompts), key=len, reverse=True)
    while waiting:
        count = max(1, pass_tokens // len(waiting[0]))
        batch, waiting = waiting[:count], waiting[count:]
        snapshot = _encode_batch(model, batch, device, pass_tokens)
        for row, prompt in enumerate(batch):
            yield prompt, snapshot, row


@torch.no_grad()
def _encode_batch(
    model: Callable[..., BaseModelOutputWithPast],
    prompts: Sequence[tuple[int, ...]],
    device: torch.device,
    pass_tokens: int,
) -> Snapshot:
    # Padding is on the right, where no token of the prompt attends, so no mask is needed. A slot's own tokens overwrite
    # it before it becomes visible.
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], batch_first=True)
    input_ids = to_device(padded, device)
    # Without a config the cache keeps all keys, even those that a sliding window would drop.
    cache = DynamicCache()
    lengths = [len(prompt) for prompt in prompts]
    last = to_device(lengths, device) - 1
    hidden = None
    piece_width = max(1, pass_tokens // len(prompts))
    for start in range(0, input_ids.shape[1], piece_width):
        stop = min(start + piece_width, input_ids.shape[1])
        output = model(input_ids=input_ids[:, start:stop], past_key_values=cache, use_cache=True)
        states = output.last_hidden_state
        assert states is not None
        piece_hidden = states[torch.arange(len(prompts), device=device), (last - start).clamp(0, stop - start - 1)]
        hidden = piece_hidden if hidden is None else torch.where((last >= start)[:, None], piece_hidden, hidden)
    assert hidden is not None
    return Snapshot(stacked(cache), lengths, hidden, [EncodedPrompt(length) for length in lengths])
