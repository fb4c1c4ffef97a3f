"""Passes of ever other shapes do without the attention that plans for each."""

import pytest
import torch

from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.backbones.output_head import last_hidden_states
from ollm_rl.backbones.plans import without_plans
from ollm_rl.decode.engine import DecodeEngine
from tests.tiny_models import tiny_model

plans = torch.backends.cuda.cudnn_sdp_enabled


def test_attention_makes_no_plans_in_passes_of_any_shape() -> None:
    policy = TokenPolicy(tiny_model("llama"), rank=2)
    backbone, tokens = policy.backbone, torch.tensor([[3, 4, 5]])
    seen: list[bool] = []
    backbone.base_model.layers[0].register_forward_pre_hook(lambda *_: seen.append(plans()))
    last_hidden_states(backbone, tokens)
    policy.lora.hidden_states(tokens)
    engine = DecodeEngine(backbone, 1, 8)
    seen[2:] = []  # of passes that only probe the model
    engine.prefill([0], tokens.tolist())
    assert seen == [False, False, False] and plans()


def test_what_was_set_before_is_set_again_after_an_error() -> None:
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with without_plans():
            assert not plans()
        assert not plans(), "who has switched it off finds it off"
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
    with pytest.raises(ValueError, match="of a pass"), without_plans():
        raise ValueError("of a pass")
    assert plans()
