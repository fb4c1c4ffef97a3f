"""The most probable token: by the product and, on CUDA, by the kernel that writes no logits."""

import warnings

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ollm_rl.backbones import output_head
from ollm_rl.backbones.output_head import OutputHead
from ollm_rl.devices import HAS_TRITON
from ollm_rl.errors import RunWarning
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.tiny_models import HIDDEN, VOCAB, tiny_model

if HAS_TRITON:
    from ollm_rl.backbones.head_kernel import BLOCKS, SMALL_BLOCKS, highest_with, most_probable

needs_cuda = pytest.mark.skipif(not (HAS_TRITON and torch.cuda.is_available()), reason="needs a CUDA device and Triton")


def test_a_kernel_that_fails_or_is_wrong_is_replaced_by_the_product_with_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*arguments: object) -> torch.Tensor:
        raise RuntimeError("out of resource: shared memory\nRequired: 98304")

    def wrong(states: torch.Tensor, *arguments: object) -> torch.Tensor:
        return torch.zeros(len(states), dtype=torch.long)

    monkeypatch.setattr(OutputHead, "_kernel_applies", lambda head, states: True)
    states = torch.randn(3, 2, HIDDEN, generator=torch.Generator().manual_seed(0))
    for kernel, reason in ((broken, "out of resource: shared memory"), (wrong, "other tokens")):
        monkeypatch.setattr(output_head, "most_probable", kernel, raising=False)
        backbone = tiny_model("llama")
        with pytest.warns(RunWarning, match=f"most probable token does not work here .*{reason}"):
            head = OutputHead(backbone)
        assert torch.equal(head.most_probable(states), backbone.lm_head(states).argmax(-1))


def test_the_kernel_gets_the_bias_and_the_tokens_that_are_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def kernel(states: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor | None) -> torch.Tensor:
        calls.append(offsets)
        return (states @ weight.T + (0 if offsets is None else offsets)).argmax(-1)

    monkeypatch.setattr(OutputHead, "_kernel_applies", lambda head, states: True)
    monkeypatch.setattr(output_head, "most_probable", kernel, raising=False)
    states = torch.randn(50, 2, HIDDEN, generator=torch.Generator().manual_seed(0))
    backbone = tiny_model("gemma2")  # its soft cap changes no order
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = OutputHead(backbone)
        free = plain.most_probable(states)
        assert torch.equal(free, plain(states).argmax(-1)) and calls[-1] is None
        assert backbone.generation_config is not None
        backbone.generation_config.suppress_tokens = [int(free[0, 0])]
        suppressed = OutputHead(backbone)
        assert torch.equal(suppressed.most_probable(states), suppressed(states).argmax(-1))
        backbone.lm_head.bias = torch.nn.Parameter(torch.linspace(-9, 9, VOCAB))
        expected = (states @ backbone.lm_head.weight.T + backbone.lm_head.bias).index_fill(-1, free[0, :1], -torch.inf)
        assert torch.equal(suppressed.most_probable(states), expected.argmax(-1))


@needs_cuda
@pytest.mark.parametrize(("count", "size", "tokens"), [(1, 64, 300), (130, 576, 1111), (5120, 576, 4096), (7, 40, 129)])
@pytest.mark.parametrize("offset", [False, True])
def test_the_kernel_finds_the_highest_logit_and_the_first_of_equal_ones(
    count: int, size: int, tokens: int, offset: bool
) -> None:
    torch.manual_seed(0)
    states = torch.randn(count, size).bfloat16()
    half = (tokens + 1) // 2  # the second half of the tokens repeats the first, so no token of it wins
    weight = torch.randn(half, size).repeat(2, 1)[:tokens].bfloat16()
    offsets = torch.randn(half).repeat(2)[:tokens] if offset else None
    if offsets is not None:
        offsets[[0, half]] = -torch.inf
    logits = states.double() @ weight.double().T + (0 if offsets is None else offsets.double())
    arguments = states.cuda(), weight.cuda(), None if offsets is None else offsets.cuda()
    for blocks in (BLOCKS, SMALL_BLOCKS):
        found = highest_with(blocks, *arguments).cpu()
        # Sums in another order differ in the last bits.
        torch.testing.assert_close(logits.gather(1, found[:, None])[:, 0], logits.max(1).values, rtol=1e-5, atol=1e-3)
        assert int(found.max()) < half
    assert torch.equal(most_probable(*arguments).cpu(), highest_with(BLOCKS, *arguments).cpu())


@needs_cuda
def test_a_state_that_is_not_a_number_gives_a_token_and_logits_below_zero_are_ordered() -> None:
    weight = torch.arange(1.0, 301).repeat(64, 1).T.bfloat16().cuda()
    states = torch.full((2, 64), -1.0).bfloat16().cuda()
    assert most_probable(states, weight, None).tolist() == [0, 0]
    assert most_probable(states[:0], weight, None).tolist() == []
    assert all(0 <= token < 300 for token in most_probable(states * torch.nan, weight, None).tolist())


@needs_cuda
@pytest.mark.parametrize("compiled", [False, True])
def test_options_offer_the_same_tokens_by_the_kernel_as_by_the_product(compiled: bool) -> None:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    backbone = LlamaForCausalLM(LlamaConfig(vocab_size=1000, hidden_size=128, **sizes)).bfloat16().cuda()
    model = OptionModel(backbone, OptionConfig(num_options=4, width=32))
    assert model.head._kernel
    offer = torch.compile(model.option_tokens) if compiled else model.option_tokens
    for count in (33, 70):
        states = torch.randn(count, 128, device="cuda").bfloat16()
        logits, found = model.decode_options(states).float(), offer(states)
        assert found.shape == (count, 4)
        chosen = logits.gather(-1, found[..., None])[..., 0]
        torch.testing.assert_close(chosen, logits.max(-1).values, rtol=2e-2, atol=2e-2)
        assert (found == logits.argmax(-1)).float().mean() > 0.9
