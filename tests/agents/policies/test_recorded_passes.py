"""Recorded passes: the hidden states and gradients of passes that are not recorded, for any lengths, or none at all."""

import gc
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies import recorded_passes
from ollm_rl.agents.policies.recorded_passes import RecordedPasses, padded_length
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.agents.training.update import Penalties, Updater
from ollm_rl.backbones.lora import add_lora
from ollm_rl.backbones.lora_products import LoraProducts
from ollm_rl.decode.rollout import Rollout
from ollm_rl.errors import RunWarning
from tests.backbones.test_lora import shake
from tests.decode.test_engine import random_ids
from tests.tiny_models import CONTEXT, tiny_model

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Played:
    """Stands for a `RecordedPass`: on a CPU nothing is recorded."""

    shapes: list[tuple[int, int]] = []

    def __init__(self, lora: LoraProducts, shape: tuple[int, int], pool: Any) -> None:
        self.lora, self.shape = lora, shape
        Played.shapes.append(shape)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        assert tuple(input_ids.shape) == self.shape
        with torch.enable_grad():
            self.hidden = self.lora.hidden_states(input_ids)
        return self.hidden.detach()

    def backward(self, gradient: torch.Tensor) -> list[torch.Tensor]:
        return list(recorded_passes.gradients_of(self.hidden, self.lora.weights, gradient))


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Played]]:
    monkeypatch.setattr(recorded_passes, "RecordedPass", Played)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(recorded_passes, "warm_up", lambda function: function())
    Played.shapes = []
    yield Played


def adapted(device: str = "cpu", dtype: torch.dtype = torch.float32, family: str = "llama") -> LoraProducts:
    backbone = tiny_model(family).requires_grad_(False)
    add_lora(backbone, 2)
    shake(backbone)
    backbone.to(device, dtype)
    for weight in backbone.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return LoraProducts(backbone)


def learned(passes: Any, lora: LoraProducts, input_ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Hidden states of a pass, and the gradients that it and one of three times the length leave in the weights."""
    for weight in lora.weights:
        weight.grad = None
    hidden = passes.hidden_states(input_ids)
    loss = hidden.float().square().sum()  # stays alive during the next pass
    loss.backward()
    passes.hidden_states(input_ids[:1].repeat(1, 3)).float().sum().backward()
    return hidden.detach(), [weight.grad.clone() for weight in lora.weights if weight.grad is not None]


def agree(lora: LoraProducts, tokens: int, sizes: list[tuple[int, int]], rtol: float) -> RecordedPasses:
    passes = RecordedPasses(lora, tokens)
    for rows, length in sizes:
        input_ids = torch.tensor(random_ids(*[length] * rows), device=lora.weights[0].device)
        (hidden, gradients), (expected, of_lora) = (learned(each, lora, input_ids) for each in (passes, lora))
        assert hidden.shape == expected.shape and len(gradients) == len(of_lora) == len(lora.weights)
        assert (hidden - expected).norm() <= rtol * expected.norm()
        found, right = (torch.cat([part.flatten() for part in parts]) for parts in (gradients, of_lora))
        assert (found - right).norm() <= rtol * right.norm() > 0
    return passes


@pytest.mark.parametrize(
    ("length", "padded"), [(1, 32), (32, 32), (33, 64), (129, 160), (200, 224), (257, 320), (1000, 1024), (1025, 1280)]
)
def test_lengths_are_padded_to_four_for_each_power_of_two(length: int, padded: int) -> None:
    assert padded_length(length) == padded


def test_padding_rows_and_lengths_changes_neither_hidden_states_nor_gradients(played: type[Played]) -> None:
    agree(adapted(), 128, [(3, 11), (4, 32), (1, 40)], 1e-5)
    assert played.shapes == [(4, 32), (2, 64), (1, 96), (1, 120)]


def test_rows_are_not_padded_beyond_the_models_context(played: type[Played], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_passes, "SHORTEST", CONTEXT - 8)
    lora = adapted(family="gpt2")  # has no positions beyond
    tokens = torch.tensor(random_ids(CONTEXT - 3, CONTEXT - 3))
    hidden = RecordedPasses(lora, 128).hidden_states(tokens)
    torch.testing.assert_close(hidden, lora.hidden_states(tokens))
    assert played.shapes == [(128 // CONTEXT, CONTEXT)]


def test_larger_passes_are_not_recorded(played: type[Played]) -> None:
    lora = adapted()
    agree(lora, 64, [(3, 11)], 1e-6)
    assert played.shapes == [(1, 64)]  # of the second pass, of one row
    agree(lora, 16, [(1, 40)], 1e-6)
    assert len(played.shapes) == 1


def test_where_attention_needs_a_mask_nothing_is_recorded(
    played: type[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = adapted(family="mistral")  # has a window
    passes = agree(lora, 128, [(2, 12)], 1e-6)
    assert not played.shapes
    lora.backbone.config.sliding_window = None
    monkeypatch.setattr(RecordedPasses, "_agrees", lambda *_: False)
    with pytest.warns(RunWarning, match="its values or gradients are others"):  # the first recording is still compared
        passes.hidden_states(torch.tensor(random_ids(100)))


def test_a_gradient_that_another_pass_has_overwritten_is_an_error(played: type[Played]) -> None:
    passes = RecordedPasses(adapted(), 64)
    hidden = passes.hidden_states(torch.tensor([[1, 2, 3]]))
    passes.hidden_states(torch.tensor([[4, 5]]))
    with pytest.raises(RuntimeError, match="take its gradient before the next pass"):
        hidden.sum().backward()


@pytest.mark.parametrize("fault", ["values", "gradients", "recording"])
def test_what_does_not_work_is_not_used_and_one_line_says_so(
    played: type[Played], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    correct = Played.forward, Played.backward

    def forward(self: Played, input_ids: torch.Tensor) -> torch.Tensor:
        if fault == "recording":
            raise RuntimeError("operation not permitted when stream is capturing")
        return (1.1 if fault == "values" else 1) * correct[0](self, input_ids)

    def backward(self: Played, gradient: torch.Tensor) -> list[torch.Tensor]:
        return [(1.1 if fault == "gradients" else 1) * part for part in correct[1](self, gradient)]

    monkeypatch.setattr(Played, "forward", forward)
    monkeypatch.setattr(Played, "backward", backward)
    reason = "RuntimeError: operation not permitted" if fault == "recording" else "its values or gradients are others"
    with pytest.warns(RunWarning, match=rf"cannot be recorded as CUDA graphs \({reason}.*\); updates are slower"):
        passes = agree(adapted(), 64, [(2, 11)], 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passes.hidden_states(torch.tensor([[1] * 40]))
    assert len(played.shapes) == 1


def test_weights_that_have_moved_are_recorded_again(played: type[Played]) -> None:
    lora, tokens = adapted(), torch.tensor(random_ids(20))
    passes = RecordedPasses(lora, 64)
    passes.hidden_states(tokens)
    passes.hidden_states(tokens)
    assert played.shapes == [(2, 32)]
    frozen = next(weight for weight in lora.backbone.parameters() if not weight.requires_grad)
    frozen.data = frozen.data.clone()  # as an engine moves those of layers that it joins
    passes.hidden_states(tokens)
    passes.hidden_states(tokens)
    assert played.shapes == [(2, 32)] * 2


def test_recordings_free_their_memory_as_soon_as_they_are_no_longer_used(
    played: type[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(passes: RecordedPasses) -> list[Any]:
        return [weakref.ref(recorded) for recorded in passes._by_shape.values()]

    gc.disable()  # they must not wait for it
    try:
        passes = RecordedPasses(adapted(), 64)
        passes.hidden_states(torch.tensor([[1, 2, 3]])).sum().backward()
        (first,) = known(passes)
        del passes
        assert first() is None
        passes = RecordedPasses(adapted(), 64)
        passes.hidden_states(torch.tensor([[1, 2, 3]]))
        (first,) = known(passes)
        monkeypatch.setattr(Played, "__init__", None)  # cannot be called
        with pytest.warns(RunWarning, match="cannot be recorded"):
            passes.hidden_states(torch.tensor([[1] * 40]))
        assert first() is None
    finally:
        gc.enable()


@needs_cuda
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_on_cuda_recordings_of_several_shapes_take_turns(dtype: torch.dtype, rtol: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RunWarning)
        lora = adapted("cuda", dtype)
        passes = agree(lora, 128, [(3, 11), (1, 40), (4, 32), (2, 41), (3, 11)], rtol)
        with torch.no_grad():
            for weight in lora.weights:
                weight.mul_(1.5)  # as a step of the optimiser changes them
        tokens = torch.tensor(random_ids(20, 20), device="cuda")
        with torch.no_grad():
            found, expected = passes.hidden_states(tokens), lora.hidden_states(tokens)
        assert (found - expected).norm() <= rtol * expected.norm()
    assert (
        passes._by_shape.keys() == {(4, 32), (2, 64), (1, 96), (1, 120), (1, 123)}
        and None not in passes._by_shape.values()
    )


@needs_cuda
def test_on_cuda_a_model_that_waits_for_the_device_is_not_recorded() -> None:
    lora = adapted("cuda")
    norm = lora.backbone.base_model.norm
    norm.register_forward_hook(lambda module, inputs, output: output * float(output.abs().max() > 0))
    with pytest.warns(RunWarning, match="cannot be recorded as CUDA graphs"):
        agree(lora, 128, [(3, 11)], 1e-5)
    agree(lora, 0, [(3, 11)], 1e-5)  # the device still works


@needs_cuda
def test_on_cuda_an_update_is_the_same_with_recorded_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    for records in (True, False):
        torch.manual_seed(0)
        policy = TokenPolicy(tiny_model("llama").cuda(), rank=4)
        if not records:
            monkeypatch.setattr(TokenPolicy, "record_passes", lambda self, tokens: None)
        tokens = torch.tensor(random_ids(*[12] * 16))
        mask = torch.arange(12) < torch.randint(1, 13, (16, 1), generator=torch.Generator().manual_seed(1))
        zeros = torch.zeros(tokens.shape)
        prompts = [row[: 3 + index // 4] for index, row in enumerate(random_ids(*[9] * 16))]
        rollout = Rollout(prompts, tokens, mask, mask, zeros - 3, zeros, mask[:, 0]).to("cuda")
        paths: Any = {"out": Path("unused"), "model": "unused"}
        settings = RLConfig(**paths, episodes=16, group_size=4, action_space="tokens", policy="lora", pass_tokens=96)
        updater = Updater(policy, settings)
        rewards, generator = torch.arange(16.0, device="cuda") % 3, torch.Generator().manual_seed(0)
        terms = updater.run(rollout, rewards, iteration=0, penalties=Penalties(0.01, 0.01), generator=generator)
        trained.append((terms, [weight.detach().clone() for weight in policy.parameters() if weight.requires_grad]))
        assert isinstance(policy._passes, RecordedPasses) is records
    (terms, weights), (others, expected) = trained
    assert terms == pytest.approx(others, rel=1e-3, abs=1e-5)
    for one, other in zip(weights, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)
