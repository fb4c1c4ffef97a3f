"""Teacher-forced evaluation against a case counted by hand, and against peft's own forward pass."""

import json
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from ollm_rl.backbones import chunks
from ollm_rl.backbones.loading import load_backbone
from ollm_rl.backbones.lora import load_lora
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.pretrain.config import TeacherForcedConfig
from ollm_rl.pretrain.data import encode_examples
from ollm_rl.pretrain.teacher_forced.run import run_teacher_forced, teacher_forced
from ollm_rl.problems.problem import Problem
from tests.tiny_models import VOCAB, save_backbone, tiny_model, tiny_tokenizer

LN2 = log(2)


def solved(solution: str) -> Problem:
    return Problem(id=solution, question="?", solution=solution, answer="1", language="en")


def constant(values: Any) -> Any:
    """Stands in for a method of a model; returns these values at every position."""
    return lambda hidden, *rest: values.expand(*hidden.shape[:-1], *values.shape)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> OptionModel:
    """A model with the same output everywhere: probabilities of "#", " ", "1" and the end of text, all others 0.

    Options 0 and 2 write "#", as the backbone does. Option 1 writes " ", option 3 "1". The encoder chooses option 1.
    """
    named = torch.tensor(tiny_tokenizer()("# 1<|endoftext|>").input_ids)

    def logits(*probs: float) -> torch.Tensor:
        return torch.full((VOCAB,), -100.0).scatter(0, named, torch.tensor(probs).log())

    like_backbone = logits(1 / 2, 1 / 4, 1 / 8, 1 / 8)
    options = [like_backbone, logits(1 / 4, 1 / 2, 1 / 8, 1 / 8), like_backbone, logits(1 / 8, 1 / 8, 1 / 2, 1 / 4)]
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=4, width=8))
    monkeypatch.setattr(model, "lm_logits", constant(like_backbone))
    monkeypatch.setattr(model, "decode_options", constant(torch.stack(options)))
    monkeypatch.setattr(model, "option_logits", constant(torch.tensor([1 / 4, 3 / 8, 1 / 4, 1 / 8]).log()))
    monkeypatch.setattr(model.adapter, "encode", constant(torch.tensor([0.1, 0.7, 0.1, 0.1]).log()))
    return model


def test_every_column_has_the_numbers_counted_by_hand(model: OptionModel) -> None:
    # Seven tokens: "####" four times "#", then " ", "1" and the end of text.
    result = teacher_forced(model, tiny_tokenizer(), [solved("#### 1")] * 3)
    values = {
        column: {name: interval[0] for name, interval in scores.items()} for column, scores in result["columns"].items()
    }
    assert values["backbone"] == pytest.approx(
        {"token_accuracy": 4 / 7, "nll": (4 * 1 + 2 + 3 + 3) * LN2 / 7, "answer_correct": 0}
    )
    revealed = 4 * LN2 + log(8 / 3) + 3 * LN2 + 3 * LN2  # options 0 and 2 are one decision of probability 1/2
    assert values["oracle"] == pytest.approx(
        {
            "token_accuracy": 6 / 7,
            "nll": (4 * 1 + 1 + 1 + 2) * LN2 / 7,
            "answer_correct": 1,
            "information": revealed / 7,
            "decision_nll": 8 * LN2 / 7,
            "gain_per_nat": (12 - 8) * LN2 / revealed,
        },
        abs=1e-6,
    )
    assert values["encoder"] == pytest.approx(
        {
            "token_accuracy": 1 / 7,
            "nll": (4 * 2 + 1 + 3 + 3) * LN2 / 7,
            "answer_correct": 0,
            "information": log(8 / 3),
            "decision_nll": 15 * LN2 / 7,
            "gain_per_nat": (12 - 15) * LN2 / (7 * log(8 / 3)),
        },
        abs=1e-6,
    )
    # Option 1 is the most probable, but the two that write "#" are together more probable.
    assert values["policy"] == pytest.approx({"token_accuracy": 4 / 7, "nll": 15 * LN2 / 7, "answer_correct": 0})
    # "#" 1/2 1/2 + 3/8 1/4 + 1/8 1/8 = 23/64, and so on.
    mixture = -(4 * log(23 / 64) + log(21 / 64) + log(11 / 64) + log(9 / 64)) / 7
    assert values["mixture"] == pytest.approx({"token_accuracy": 4 / 7, "nll": mixture, "answer_correct": 0})
    assert result["oracle_gain"] == pytest.approx([2 / 7] * 3)
    assert result["nll_gain"] == pytest.approx([4 * LN2 / 7] * 3)
    assert result["options"]["distinct_tokens"] == [3, 3, 3] and result["options"]["live_share"] == [1, 1, 1]
    # The backbone gives all four tokens at least 1/8; the options offer "#", " " and "1".
    assert result["options"]["mode_coverage_live"] == result["options"]["mode_coverage_first"] == [0.75] * 3
    assert result["options"]["whole_coverage"] == [0, 0, 0]
    # The mixture's entropy minus 7/8 times that of three options and 1/8 times that of the last.
    mixed = [23 / 64, 21 / 64, 11 / 64, 9 / 64]
    information = sum(-p * log(p) for p in mixed) - 7 / 4 * LN2
    assert result["options"]["mutual_information"] == pytest.approx([information] * 3, abs=1e-5)
    assert (result["num_problems"], result["num_tokens"], result["num_answers"]) == (3, 21, 3)
    # Three of three, exactly: 0.025 ** (1 / 3) = 0.2924.
    assert result["columns"]["oracle"]["answer_correct"] == pytest.approx([1, 0.2924, 1], abs=1e-4)


def test_ambiguity_is_that_of_the_backbone(model: OptionModel) -> None:
    found = teacher_forced(model, tiny_tokenizer(), [solved("#### 1")] * 3)["ambiguity"]
    # Everywhere entropy 1/2 log 2 + 1/4 log 4 + 1/4 log 8 = 1.213 nats, and 3/4 on two tokens.
    assert (found["deterministic"], found["ambiguous"]) == ([0, 0, 0], [1, 1, 1])
    assert found["top_two"] == pytest.approx([0.75] * 3) and found["ambiguous_top_two"] == pytest.approx([0.75] * 3)
    assert found["entropy_histogram"]["counts"] == [0] * 12 + [21]
    assert found["entropy_histogram"]["edges"][-2:] == [1.2, 1.3]
    assert len(found["top_two_histogram"]["edges"]) == 21 and sum(found["top_two_histogram"]["counts"]) == 21


def test_the_first_eight_problems_list_what_each_option_says(model: OptionModel) -> None:
    tables = teacher_forced(model, tiny_tokenizer(), [solved("#### 1")] * 9)["option_tables"]
    assert [table["id"] for table in tables] == ["#### 1"] * 8
    rows = tables[0]["rows"]
    assert [row["token"] for row in rows] == ["#", "#", "#", "#", " ", "1", "<|endoftext|>"]
    assert [row["answer"] for row in rows] == [False] * 5 + [True, False]
    assert rows[0]["options"] == ["#", " ", "#", "1"]
    assert rows[0]["policy"] == [0.25, 0.375, 0.25, 0.125] and rows[0]["encoder"] == [0.1, 0.7, 0.1, 0.1]


def test_tokens_count_alike_and_the_interval_is_over_problems(model: OptionModel) -> None:
    # 4 of 7 and 4 of 11 tokens: 8 of 18 in all. Resampled problems give shares between the two.
    result = teacher_forced(model, tiny_tokenizer(), [solved("#### 1"), solved("#### 12345")] * 10)
    value, low, high = result["columns"]["backbone"]["token_accuracy"]
    assert value == pytest.approx(8 / 18)
    assert 4 / 11 < low < value < high < 4 / 7
    # The oracle has every token of "1", but only the first of "12345".
    assert result["columns"]["oracle"]["answer_correct"][0] == 0.5


def test_an_answer_that_is_cut_off_does_not_count(model: OptionModel) -> None:
    # 64 tokens of context: the second solution loses its answer.
    result = teacher_forced(model, tiny_tokenizer(), [solved("#### 1"), solved("#" * 62 + " 1")])
    assert (result["num_problems"], result["num_answers"]) == (2, 1)
    assert result["columns"]["oracle"]["answer_correct"][0] == 1
    alone = teacher_forced(model, tiny_tokenizer(), [solved("#" * 62 + " 1")])
    assert alone["num_answers"] == 0 and alone["columns"]["oracle"]["answer_correct"] is None


def test_options_that_always_agree_have_no_gain_per_nat(model: OptionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "decode_options", constant(torch.arange(float(VOCAB)).expand(4, -1)))
    scores = teacher_forced(model, tiny_tokenizer(), [solved("#### 1")])["columns"]["oracle"]
    assert scores["information"] == [0, 0, 0] and scores["gain_per_nat"] is None


def test_problems_without_solutions_are_refused(model: OptionModel) -> None:
    with pytest.raises(ValueError, match="the problems hold no worked solutions; teacher forcing needs them"):
        teacher_forced(model, tiny_tokenizer(), [solved("")])


def test_chunks_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=4, width=8))
    problems = [solved("#### 1"), solved("Two words. #### 12"), solved("A third.")]
    together = teacher_forced(model, tiny_tokenizer(), problems)["columns"]
    monkeypatch.setattr(chunks, "MAX_LOGITS", 3 * 4 * VOCAB)  # three positions
    apart = teacher_forced(model, tiny_tokenizer(), problems, batch_size=1)["columns"]
    for column, scores in together.items():
        for name, interval in scores.items():
            assert apart[column][name] == pytest.approx(interval, rel=1e-4)


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    return save_backbone(tmp_path / "backbone")


def save_lora(folder: Path, backbone: str, *, trained: bool) -> PeftModel:
    """Write a LoRA on a backbone. Untrained, it has B = 0 and changes nothing."""
    lora = get_peft_model(load_backbone(backbone)[0], LoraConfig(r=4, target_modules="all-linear"))
    if trained:
        torch.manual_seed(0)
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.3)
    lora.save_pretrained(str(folder))
    return lora.eval()


def with_lora(backbone: str, lora: Path | None) -> dict[str, dict[str, Any]]:
    """Columns for one problem, with random options that are the same each time."""
    loaded, tokenizer = load_backbone(backbone)
    torch.manual_seed(0)
    model = OptionModel(loaded, OptionConfig(num_options=4, width=8))
    adapter = None if lora is None else load_lora(loaded, str(lora))
    columns: dict[str, dict[str, Any]] = teacher_forced(model, tokenizer, [solved("#### 1")], lora=adapter)["columns"]
    return columns


def test_a_fresh_lora_has_the_scores_of_the_backbone(tmp_path: Path, backbone: str) -> None:
    save_lora(tmp_path / "lora", backbone, trained=False)
    columns = with_lora(backbone, tmp_path / "lora")
    assert columns["lora"] == columns["backbone"]
    assert list(columns) == ["backbone", "lora", "oracle", "encoder", "policy", "mixture"]


def test_a_trained_lora_has_the_loss_of_peft_and_leaves_the_other_columns_unchanged(
    tmp_path: Path, backbone: str
) -> None:
    peft_model = save_lora(tmp_path / "lora", backbone, trained=True)
    columns = with_lora(backbone, tmp_path / "lora")
    (example,) = encode_examples([solved("#### 1")], tiny_tokenizer(), max_length=64)
    # transformers' own loss: the mean over the labels that count.
    with torch.no_grad():
        loss = peft_model(torch.tensor([example["input_ids"]]), labels=torch.tensor([example["labels"]])).loss
    assert columns["lora"]["nll"][0] == pytest.approx(float(loss), rel=1e-5)
    assert abs(columns["lora"]["nll"][0] - columns["backbone"]["nll"][0]) > 0.01
    alone = with_lora(backbone, None)
    assert alone == {column: scores for column, scores in columns.items() if column != "lora"}


def test_a_lora_of_another_backbone_is_refused(tmp_path: Path, backbone: str) -> None:
    save_lora(tmp_path / "lora", save_backbone(tmp_path / "other", "gpt2"), trained=False)
    loaded, _ = load_backbone(backbone)
    with pytest.raises(ValueError, match="was trained on '.*other', the options on '.*backbone'; give a LoRA of that"):
        load_lora(loaded, str(tmp_path / "lora"))
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": backbone}))
    with pytest.raises(ValueError, match="does not fit the backbone '.*backbone'"):
        load_lora(loaded, str(tmp_path / "lora"))


def test_a_folder_without_a_lora_is_refused(tmp_path: Path, backbone: str) -> None:
    loaded, _ = load_backbone(backbone)
    OptionModel(loaded, OptionConfig(num_options=4, width=8)).save_pretrained(tmp_path / "options")
    for folder in ("options", "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"lora='.*{folder}' holds .*; give a LoRA"):
            load_lora(loaded, str(tmp_path / folder))


def run(tmp_path: Path, backbone: str, out: Path) -> dict[str, Any]:
    """``run_teacher_forced`` on untrained options and one problem, with a fresh LoRA."""
    OptionModel.from_backbone(backbone, OptionConfig(num_options=4, width=8)).save_pretrained(tmp_path / "options")
    save_lora(tmp_path / "lora", backbone, trained=False)
    (tmp_path / "data.jsonl").write_text(json.dumps({"question": "1+1?", "solution": "#### 2", "answer": 2}))
    paths = {"model": str(tmp_path / "options"), "lora": str(tmp_path / "lora"), "data": f"jsonl:{tmp_path}/data.jsonl"}
    return run_teacher_forced(TeacherForcedConfig(**paths, out=out, limit=None, dtype="bfloat16", device="cpu", seed=3))


def test_the_result_is_written_with_a_report_beside_it(tmp_path: Path, backbone: str) -> None:
    result = run(tmp_path, backbone, tmp_path / "new" / "forced.json")
    assert json.loads((tmp_path / "new" / "forced.json").read_text()) == result
    assert (result["seed"], result["lora"], result["num_tokens"]) == (3, str(tmp_path / "lora"), 7)
    assert "<h1>OLLM-RL: teacher-forced comparison</h1>" in (tmp_path / "new" / "forced.html").read_text()


def test_a_result_that_could_not_be_written_is_refused_before_the_work(tmp_path: Path, backbone: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/forced.json' cannot be written .*; give another path"):
        run(tmp_path, backbone, tmp_path / "file" / "forced.json")
    with pytest.raises(ValueError, match="forced.html' must be a file such as result.json"):
        run(tmp_path, backbone, tmp_path / "forced.html")
