"""The loss of backbone and LoRA is that of transformers, gradients included, whatever the size of a chunk."""

import copy
from typing import Any

import pytest
import torch
from peft import get_peft_model

from ollm_rl.backbones import chunks
from ollm_rl.backbones.lora import lora_config
from ollm_rl.options.model import IGNORED
from ollm_rl.pretrain.token_loss import chunk_loss
from tests.tiny_models import VOCAB, tiny_model


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1, VOCAB, (3, 9), generator=generator)
    labels, mask = input_ids.clone(), torch.ones_like(input_ids)
    labels[0, :4] = labels[1, :2] = labels[2, :7] = IGNORED
    labels[1, 6:], mask[1, 6:] = IGNORED, 0
    return {"input_ids": input_ids, "labels": labels, "attention_mask": mask}


def gradients(model: Any, **arguments: Any) -> tuple[float, list[torch.Tensor]]:
    loss = model(**batch(), **arguments).loss
    loss.backward()
    return loss.item(), [weight.grad for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize(("stage", "family"), [("backbone", "gpt2"), ("lora", "gemma2")])  # tied weights; a soft cap
@pytest.mark.parametrize("arguments", [{}, {"num_items_in_batch": torch.tensor(40)}], ids=["mean", "accumulated"])
def test_the_loss_and_its_gradients_are_those_of_transformers(
    stage: str, family: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "MAX_LOGITS", 3 * VOCAB)  # 12 positions in chunks of three
    own = tiny_model(family)
    ours = copy.deepcopy(own)
    chunk_loss(ours)
    models: list[Any] = [own, ours]
    if stage == "lora":
        for index, model in enumerate(models):
            torch.manual_seed(1)
            models[index] = model = get_peft_model(model, lora_config(model, 4))
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(weight, std=0.1)
    (expected, slopes), (found, others) = (gradients(model, **arguments) for model in models)
    assert found == pytest.approx(expected, rel=1e-6)
    assert len(slopes) == len(others) > 10
    for one, other in zip(slopes, others, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6 * float(one.abs().max()))


def test_without_labels_the_model_is_as_before() -> None:
    own, ours = tiny_model("llama"), tiny_model("llama")
    chunk_loss(ours)
    input_ids = batch()["input_ids"]
    with torch.no_grad():
        assert torch.equal(ours(input_ids).logits, own(input_ids=input_ids).logits)
        assert torch.equal(ours.generate(input_ids, max_new_tokens=4), own.generate(input_ids, max_new_tokens=4))
