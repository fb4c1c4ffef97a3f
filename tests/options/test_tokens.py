"""The options' most probable tokens by fewer products, against the head on every biased state."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.nn import functional as F

from ollm_rl.backbones import output_head
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.options.tokens import is_plain, takes_fewer_products
from tests.tiny_models import HIDDEN, VOCAB, tiny_model

NARROW = OptionConfig(num_options=6, width=4)


def states(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(0))


def expected_tokens(model: OptionModel, hidden: torch.Tensor, forbidden: list[int]) -> torch.Tensor:
    """By eq. 2-3 of OLLM in float64, one option at a time."""
    adapter, linear = model.adapter.double(), model.head.linear
    normal = F.layer_norm(hidden.double(), (HIDDEN,), adapter.decoder_norm.weight, adapter.decoder_norm.bias)
    tokens = []
    for option in adapter.option_embedding:
        biased = hidden.double() + adapter.decoder_out(F.gelu(adapter.decoder_in(normal) + option))
        logits = biased @ linear.weight.double().T + (0 if linear.bias is None else linear.bias.double())
        logits[..., forbidden] = -torch.inf
        tokens.append(logits.argmax(-1))
    adapter.float()
    return torch.stack(tokens, -1)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_narrow_decoders_tokens_are_those_of_every_biased_state(family: str, bias: bool) -> None:
    backbone, hidden = tiny_model(family), states(5, 8)
    if bias:
        backbone.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, VOCAB), requires_grad=False)
    model = OptionModel(backbone, NARROW)
    common = int(expected_tokens(model, hidden, []).flatten().mode().values)
    assert backbone.generation_config is not None
    backbone.generation_config.suppress_tokens = [common]
    model = OptionModel(backbone, NARROW)
    model.adapter.decoder_out.bias.copy_(torch.linspace(-2, 2, HIDDEN))
    assert is_plain(model.adapter, model.head, hidden.flatten(0, 1)) and takes_fewer_products(40, model.adapter)
    found = model.option_tokens(hidden)
    assert torch.equal(found, expected_tokens(model, hidden, [common]))
    assert len(found.unique()) > 3 and (found != found[..., :1]).any()


@torch.no_grad()
def test_few_rows_wide_decoders_and_identity_options_go_through_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[tuple[int, ...]]()

    def noted(head: output_head.OutputHead, hidden_states: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(hidden_states.shape))
        return head(hidden_states).argmax(-1)

    monkeypatch.setattr(output_head.OutputHead, "most_probable", noted)
    for width, identity, shape in ((4, False, (1,)), (HIDDEN, False, (40,)), (4, True, (40,)), (4, False, (40,))):
        model = OptionModel(tiny_model("llama"), OptionConfig(num_options=6, width=width, identity_option=identity))
        hidden = states(*shape)
        assert torch.equal(model.option_tokens(hidden), model.decode_options(hidden).argmax(-1))
    assert calls == [(1, 6, HIDDEN), (40, 6, HIDDEN), (40, 6, HIDDEN)]


def test_numpy_and_torch_find_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    head, logits = output_head.OutputHead(tiny_model("llama")), states(3, 50)
    logits[0, 0, 5:9] = 9.0  # equal ones
    logits[1, 1, 7] = torch.nan
    logits[2, 2] = -torch.inf
    for shape in ((3, 50), (3,), ()):
        some = logits.flatten()[: max(1, torch.Size(shape).numel()) * HIDDEN].view(*shape, HIDDEN)
        found = head.highest(some.clone())
        monkeypatch.setattr(output_head, "NUMPY_LOGITS", 0)
        assert found.dtype == torch.long and torch.equal(found, head.highest(some.clone()))
        monkeypatch.undo()


def test_a_wrapped_head_and_other_precisions_go_through_the_head() -> None:
    plain, wrapped = (OptionModel(tiny_model("llama"), NARROW) for _ in range(2))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["lm_head"]), wrapped.backbone)
    assert is_plain(plain.adapter, plain.head, states(40))
    assert not is_plain(wrapped.adapter, wrapped.head, states(40))
    assert not is_plain(plain.adapter, plain.head, states(40).bfloat16())
    plain.backbone.bfloat16()
    assert not is_plain(plain.adapter, plain.head, states(40))


@torch.no_grad()
def test_a_rows_tokens_do_not_depend_on_how_many_rows_there_are_where_a_soft_cap_saturates() -> None:
    backbone, hidden = tiny_model("gemma2"), states(64)
    backbone.lm_head.weight.normal_(0, 40, generator=torch.Generator().manual_seed(0))
    model = OptionModel(backbone, NARROW)
    assert takes_fewer_products(64, model.adapter) and not takes_fewer_products(1, model.adapter)
    logits = model.decode_options(hidden)
    assert (logits == logits.amax(-1, keepdim=True)).sum(-1).max() > 1, "several are at the cap"
    assert torch.equal(model.option_tokens(hidden), torch.cat([model.option_tokens(row[None]) for row in hidden]))
