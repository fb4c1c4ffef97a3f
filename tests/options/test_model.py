"""The option model: the backbone untouched, the plug-in saved and loaded, and a small task learned."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
)

from ollm_rl.options.adapter import OptionAdapter, default_width
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.diagnostics import option_diagnostics
from ollm_rl.options.model import OptionModel
from tests.tiny_models import VOCAB, save_backbone, tiny_config, tiny_model

FAMILIES = ("llama", "qwen2", "gpt2", "gemma2")
CONFIG = OptionConfig(num_options=4, width=16)


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def train(model: OptionModel, ids: torch.Tensor, labels: torch.Tensor, steps: int, lr: float = 1e-2) -> list[float]:
    """Plain Adam on the plug-in; returns the losses."""
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        output = model(ids, labels)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        model.adapter.kl_weight.update(float(output.kl.detach()))
        losses.append(float(output.loss.detach()))
    return losses


def test_without_the_plug_in_the_logits_are_the_backbones_bit_for_bit(backbone: PreTrainedModel) -> None:
    ids = random_ids(3, 20)
    with torch.no_grad():
        expected = copy.deepcopy(backbone)(input_ids=ids).logits
    model = OptionModel(backbone, CONFIG)
    assert torch.equal(model.lm_logits(model.hidden_states(ids)), expected)


def test_padding_on_the_right_does_not_change_the_hidden_states_of_real_tokens(backbone: PreTrainedModel) -> None:
    model = OptionModel(backbone, CONFIG)
    ids, mask = random_ids(2, 14), torch.ones(2, 14, dtype=torch.long)
    mask[0, 9:] = 0
    alone = model.hidden_states(ids[:1, :9])
    torch.testing.assert_close(model.hidden_states(ids, mask)[:1, :9], alone, rtol=1e-4, atol=1e-4)


def test_an_option_adds_its_bias_before_the_output_head(backbone: PreTrainedModel) -> None:
    model = OptionModel(backbone, CONFIG)
    hidden = model.hidden_states(random_ids(2, 5))
    biases = model.adapter.biases(hidden)
    logits = model.decode_options(hidden)
    assert logits.shape == (2, 5, 4, VOCAB)
    for option in range(4):
        expected = backbone.get_output_embeddings()(hidden[1, 3] + biases[1, 3, option])
        if backbone.config.model_type == "gemma2":
            expected = 4.0 * torch.tanh(expected / 4.0)
        torch.testing.assert_close(logits[1, 3, option], expected, rtol=1e-5, atol=1e-5)
    assert model.option_tokens(hidden).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_options_are_decoded_in_the_backbones_precision_from_weights_in_float32(
    backbone: PreTrainedModel, dtype: torch.dtype
) -> None:
    model = OptionModel(backbone.to(dtype), CONFIG)
    hidden = model.hidden_states(random_ids(2, 12))
    seen: list[torch.dtype] = []
    hook = model.adapter.decoder_out.register_forward_hook(lambda layer, given, found: seen.append(found.dtype))
    found = model.decode_options(hidden)
    hook.remove()
    assert seen == [dtype] and found.dtype == dtype
    assert {parameter.dtype for parameter in model.adapter.parameters()} == {torch.float32}
    expected = model.lm_logits(hidden[..., None, :] + model.adapter.biases(hidden).to(dtype))
    # bfloat16 has 8 bits of mantissa; logits are some nats.
    tolerance = 1e-5 if dtype == torch.float32 else 0.02 * float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_training_moves_the_plug_in_and_no_weight_of_the_backbone(backbone: PreTrainedModel) -> None:
    before = copy.deepcopy(backbone).state_dict()
    model = OptionModel(backbone, CONFIG).train()
    adapter_before = copy.deepcopy(dict(model.adapter.named_parameters()))
    ids = random_ids(2, 12)
    train(model, ids, ids, steps=3)
    after = model.backbone.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not model.backbone.training
    unmoved = [name for name, new in model.adapter.named_parameters() if torch.equal(new, adapter_before[name])]
    assert not unmoved


def test_the_loss_is_the_sum_of_its_terms_and_sends_gradients_only_to_the_plug_in(backbone: PreTrainedModel) -> None:
    model = OptionModel(backbone, OptionConfig(num_options=4, width=16, kl_weight_init=0.25))
    ids = random_ids(2, 12)
    output = model(ids, ids)
    expected = output.cross_entropy + 0.25 * output.kl + output.policy_loss
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(parameter.grad is not None for parameter in model.adapter.parameters())


def test_only_labelled_tokens_count() -> None:
    model = OptionModel(tiny_model("llama"), CONFIG)
    ids = random_ids(2, 10)
    labels = torch.full_like(ids, -100)
    labels[0, 4], labels[1, 7], labels[1, 0] = ids[0, 4], ids[1, 7], ids[1, 0]  # nothing predicts the first token
    before = {int(ids[0, 4]): (0, 3), int(ids[1, 7]): (1, 6)}  # position of the token before each target
    states, output = model.counted_states(ids, labels), model(ids, labels)
    assert states.targets.tolist() == list(before)
    hidden = torch.stack([model.hidden_states(ids)[place] for place in before.values()])
    torch.testing.assert_close(states.hidden_states, hidden)
    with torch.no_grad():
        rows = -model.decode_options(hidden).log_softmax(-1)[torch.arange(2), :, states.targets]
    expected = (output.option_probs * rows).sum(-1).mean()
    torch.testing.assert_close(output.cross_entropy, expected, rtol=1e-5, atol=1e-5)


def test_the_terms_of_a_padded_batch_are_the_means_over_its_separate_rows(backbone: PreTrainedModel) -> None:
    model = OptionModel(backbone, CONFIG)
    lengths = [5, 12, 3, 12, 7, 2, 9, 11, 4, 6]  # more rows than the backbone reads at once
    ids, mask, labels = random_ids(10, 12), torch.zeros(10, 12, dtype=torch.long), torch.full((10, 12), -100)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
        labels[row, 1 + row % 3 : length] = ids[row, 1 + row % 3 : length]
    counts = [max(0, length - 1 - row % 3) for row, length in enumerate(lengths)]
    together, states = model(ids, labels, mask), model.counted_states(ids, labels, mask)
    assert states.targets.tolist() == labels[:, 1:][labels[:, 1:] != -100].tolist()  # row by row
    assert states.offsets.tolist() == [place for count in counts for place in range(count)]
    for term in ("cross_entropy", "kl", "policy_loss"):
        alone = [
            count * float(getattr(model(ids[row : row + 1, :n], labels[row : row + 1, :n]), term).detach())
            for row, (n, count) in enumerate(zip(lengths, counts, strict=True))
            if count
        ]
        assert float(getattr(together, term).detach()) == pytest.approx(sum(alone) / sum(counts), rel=1e-4, abs=1e-5)


def test_the_options_come_to_offer_both_continuations_of_an_ambiguous_prefix() -> None:
    """Each of four prefixes is followed by one of two tokens, each with probability 1/2."""
    torch.manual_seed(0)
    prefixes, continuations = random_ids(4, 3), [(7, 41), (12, 88), (55, 23), (90, 34)]
    ids = torch.tensor(
        [[*prefix.tolist(), token] for prefix, pair in zip(prefixes, continuations, strict=True) for token in pair]
    )
    labels = ids.clone()
    labels[:, :-1] = -100
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=4, width=32, kl_target=0.6))
    states = model.counted_states(ids, labels)
    before = option_diagnostics(model, states)
    losses = train(model, ids, labels, steps=120, lr=3e-3)
    after = option_diagnostics(model, states)

    assert before["oracle_token_accuracy"] < 0.5
    assert losses[-1] < losses[0] / 2
    assert after["oracle_token_accuracy"] == 1
    assert after["distinct_tokens"] >= 2
    # A single distribution for both cannot be below log 2 = 0.69 nats; given the option, the loss can.
    assert float(model(ids, labels).cross_entropy) < 0.35
    for row, pair in enumerate(continuations):
        offered = model.option_tokens(model.hidden_states(ids[2 * row : 2 * row + 1, :-1])[0, -1])
        assert set(pair) <= set(offered.tolist())


def test_a_saved_plug_in_decodes_the_same_after_loading(backbone: PreTrainedModel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OptionModel(backbone, CONFIG)
    ids = random_ids(2, 12)
    train(model, ids, ids, steps=3)
    model.save_pretrained(tmp_path)
    hidden = model.hidden_states(ids)
    torch.manual_seed(1)
    loaded = OptionModel.from_pretrained(tmp_path, copy.deepcopy(backbone))
    assert torch.equal(loaded.decode_options(hidden), model.decode_options(hidden))
    assert torch.equal(loaded.option_logits(hidden), model.option_logits(hidden))
    assert float(loaded.adapter.kl_weight.weight) == float(model.adapter.kl_weight.weight) != CONFIG.kl_weight_init
    assert loaded.option_config == CONFIG


def test_saving_writes_the_plug_in_without_the_backbone(tmp_path: Path) -> None:
    model = OptionModel(tiny_model("llama"), CONFIG)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"option_config.json", "adapter_model.safetensors"}
    weights = sum(parameter.numel() for parameter in model.adapter.parameters())
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert 4 * weights < size < 4 * weights + 4096  # float32 and a header


def test_a_plug_in_finds_its_backbone_by_name(tmp_path: Path) -> None:
    name = save_backbone(tmp_path / "backbone")
    model = OptionModel.from_backbone(name, CONFIG)
    model.save_pretrained(tmp_path / "plug-in")
    loaded = OptionModel.from_pretrained(tmp_path / "plug-in")
    hidden = model.hidden_states(random_ids(1, 6))
    assert torch.equal(loaded.hidden_states(random_ids(1, 6)), hidden)
    assert torch.equal(loaded.decode_options(hidden), model.decode_options(hidden))


def test_a_wrong_backbone_is_refused_by_both_names(tmp_path: Path) -> None:
    right, wrong = save_backbone(tmp_path / "right"), save_backbone(tmp_path / "wrong", seed=1)
    OptionModel.from_backbone(right, CONFIG).save_pretrained(tmp_path / "plug-in")
    with pytest.raises(ValueError) as raised:
        OptionModel.from_pretrained(tmp_path / "plug-in", wrong)
    assert repr(right) in str(raised.value) and repr(wrong) in str(raised.value)


def test_a_folder_without_a_plug_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no option plug-in"):
        OptionModel.from_pretrained(tmp_path, tiny_model("llama"))


def damage_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def remove_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def damage_settings(folder: Path) -> None:
    path = folder / "option_config.json"
    path.write_text(path.read_text()[:40])


def remove_a_setting(folder: Path) -> None:
    path = folder / "option_config.json"
    settings = json.loads(path.read_text())
    del settings["num_options"]
    path.write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_weights, "adapter_model.safetensors"),
        (remove_weights, "adapter_model.safetensors"),
        (damage_settings, "option_config.json"),
        (remove_a_setting, "option_config.json"),
    ],
)
def test_a_damaged_plug_in_is_refused_in_one_line_that_names_the_file(
    tmp_path: Path, damage: Callable[[Path], None], named: str
) -> None:
    OptionModel(tiny_model("llama"), CONFIG).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError) as raised:
        OptionModel.from_pretrained(tmp_path, tiny_model("llama"))
    assert f"{tmp_path}/{named} cannot be read" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_of_another_shape_are_refused_with_the_tensor_and_both_sizes(tmp_path: Path) -> None:
    OptionModel(tiny_model("llama"), OptionConfig(num_options=3, width=16)).save_pretrained(tmp_path)
    with pytest.raises(ValueError) as raised:
        OptionModel(tiny_model("llama"), CONFIG).load_adapter(tmp_path)
    message = str(raised.value)
    assert "option_embedding" in message and "[3, 16]" in message and "[4, 16]" in message
    assert "\n" not in message


def test_a_model_without_an_output_head_is_refused() -> None:
    with pytest.raises(ValueError, match="LlamaModel has no usable output head"):
        OptionModel(LlamaModel(tiny_config("llama")), CONFIG)


def test_models_that_scale_their_logits_after_the_head_are_refused() -> None:
    shape = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0}
    for scaled in (
        GraniteForCausalLM(GraniteConfig(**shape, **heads, logits_scaling=8.0)),
        CohereForCausalLM(CohereConfig(**shape, **heads, logit_scale=0.0625)),
    ):
        with pytest.raises(ValueError, match=f"{type(scaled).__name__} changes its logits after the output head"):
            OptionModel(scaled, CONFIG)


@pytest.mark.parametrize("num_options", [2, 10, 64])
def test_the_default_width_keeps_the_plug_in_within_two_percent_of_a_real_backbone(num_options: int) -> None:
    # The shape of SmolLM2-135M.
    shape = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    config = LlamaConfig(**shape, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
    with torch.device("meta"):
        backbone = AutoModelForCausalLM.from_config(config)
        total = sum(parameter.numel() for parameter in backbone.parameters())
        options = OptionConfig(num_options=num_options)
        width = default_width(options, 576, total)
        adapter, wider = (OptionAdapter(options, 576, each) for each in (width, width + 8))
    assert total == pytest.approx(134.5e6, rel=0.01)
    assert sum(parameter.numel() for parameter in adapter.parameters()) <= 0.02 * total
    # The largest such width, or as wide as the hidden states.
    assert width == 576 or sum(parameter.numel() for parameter in wider.parameters()) > 0.02 * total


def test_a_backbone_too_small_for_the_default_width_asks_for_a_width() -> None:
    with pytest.raises(ValueError, match="set width yourself"):
        OptionModel(tiny_model("llama"), OptionConfig())


def test_the_trainable_share_is_the_plug_ins_part_of_the_backbone() -> None:
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=4, width=8))
    # H 32, W 8, K 4. Encoder: norm 2*64, 64*8+8, 8*4+4; decoder: norm 2*32, 32*8+8, 4*8, 8*32+32; policy: norm 2*32,
    # 32*8+8, 8*4+4.
    adapter = (128 + 520 + 36) + (64 + 264 + 32 + 288) + (64 + 264 + 36)
    assert model.trainable_share() == adapter / sum(parameter.numel() for parameter in model.backbone.parameters())


@pytest.mark.parametrize(
    ("setting", "value"), [("num_options", 0), ("width", 0), ("kl_target", 0.0), ("kl_weight_init", -0.1)]
)
def test_a_setting_out_of_range_is_refused_by_name_and_value(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{setting}={value}"):
        OptionConfig(**{setting: value})  # type: ignore[arg-type]
