"""Drift: the likelihood is the backbone's own, and tables count what the rows say."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from ollm_rl.agents.config import RLConfig
from ollm_rl.errors import UsageError
from ollm_rl.experiments.config import CompareConfig
from ollm_rl.experiments.studies import drift, drift_tables
from ollm_rl.experiments.studies.likelihood import log_likelihoods
from tests.tiny_models import EOS, tiny_model, tiny_tokenizer


def test_likelihoods_are_those_of_one_pass_per_text() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    texts = [("What is 2+2?", "It is 4.", True), ("Why?", "No.", False), ("Why?", "", True), ("Why?", "", False)]
    rows = [dict(zip(("question", "completion", "terminated"), text, strict=True)) for text in [*texts, texts[0]]]
    found = log_likelihoods(model, tokenizer, rows)
    for (question, completion, terminated), mean in zip(texts[:3], found, strict=False):
        prompt = tokenizer(f"{question}\n").input_ids
        ids = [*prompt, *tokenizer(completion).input_ids, *([EOS] if terminated else [])]
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        chosen = [float(log_probs[place - 1, ids[place]]) for place in range(len(prompt), len(ids))]
        assert mean == pytest.approx(sum(chosen) / len(chosen), abs=1e-5)
    assert found[3] != found[3]  # nothing was written
    assert found[4] == found[0]


@pytest.mark.parametrize(("eval_data", "columns"), [(None, "question=q"), ("jsonl:test.jsonl", "question=frage")])
def test_test_problems_of_the_training_source_have_its_columns(
    eval_data: str | None, columns: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read: dict[str, Any] = {}
    monkeypatch.setattr(drift, "load_problems", lambda source, **settings: read.update(settings, source=source) or [])
    monkeypatch.setattr(drift, "load_policy", lambda *_, **__: (None, None))
    monkeypatch.setattr(drift, "evaluate", lambda *_, **__: {"completions": []})
    run = RLConfig(model="options", out=tmp_path, data="jsonl:train.jsonl", columns="question=q")
    given: dict[str, Any] = {"eval_data": eval_data, "eval_columns": "question=frage"} if eval_data else {}
    config = CompareConfig(out=tmp_path, methods={"latent": {}, "other": {}}, baseline="latent", **given)
    drift.after_training(run, config, torch.device("cpu"))
    assert (read["source"], read["columns"]) == (eval_data or "jsonl:train.jsonl", columns)


def test_training_problems_are_no_test_problems(tmp_path: Path) -> None:
    settings = tmp_path / "drift.yaml"
    settings.write_text(
        "train: {model: options, data: jsonl:train.jsonl}\nmethods: {latent: {}, other: {}}\nbaseline: latent\n"
    )
    with pytest.raises(UsageError, match="^the study would evaluate on the training problems; give eval_data$"):
        drift.study(["--config", str(settings), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def rows_of(method: str, seed: int, correct: str, switched: str, loops: str) -> pd.DataFrame:
    """One run; a digit per episode."""
    columns = {
        "correct": [digit == "1" for digit in correct],
        "switched": pd.array([None if digit == "?" else digit == "1" for digit in switched], dtype="boolean"),
        "flags": ["loop" if digit == "1" else "" for digit in loops],
        "tokens": [10] * len(correct),
        "log_prob": [-0.5] * len(correct),
    }
    return pd.DataFrame({"method": method, "seed": seed, "part": "train", **columns})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    runs = [
        rows_of("latent", 0, "001111", "000010", "000000"),
        rows_of("latent", 1, "000110", "00?000", "000000"),
        rows_of("vocabulary", 0, "000011", "000011", "000001"),
        rows_of("vocabulary", 1, "000000", "000000", "111111"),
    ]
    path = tmp_path / "drift.parquet"
    pd.concat(runs).to_parquet(path, index=False)
    return path


def test_another_file_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"reward": [1.0]}).to_parquet(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    for name in ("other", "text"):
        with pytest.raises(UsageError, match=rf"{name}.parquet (holds no|is no) .*; give .*drift.parquet"):
            drift_tables.load(tmp_path / f"{name}.parquet")


def test_rates_are_those_of_the_window_in_which_the_reward_is_first_reached(file: Path) -> None:
    table = drift_tables.threshold_table(drift_tables.load(file), 2, 1.0)
    latent, vocabulary = table.rows
    # Windows: episodes 3 and 4 of seed 0, 4 and 5 of seed 1; the vocabulary's 5 and 6 of seed 0 only.
    assert [str(cell) for cell in latent[:3]] == ["latent", "2 of 2", "4 [4, 5]"]
    assert str(latent[4]) == "1.000 [1.000, 1.000]"
    assert str(latent[-1]) == "0.00"
    assert [str(cell) for cell in vocabulary[1:3]] == ["1 of 2", "6 [6, 6]"]
    assert [str(cell) for cell in vocabulary[4:7]] == [
        "0.000 [0.000, 0.000]",
        "100.0 [100.0, 100.0]",
        "50.0 [50.0, 50.0]",
    ]


def test_the_end_of_training_averages_seeds_and_an_unknown_language_is_not_counted(file: Path) -> None:
    table = drift_tables.end_table(drift_tables.load(file), "train", 4)
    latent, vocabulary = table.rows
    # Seed 0: 4 of 4 right, 1 switches; seed 1: 2 of 4 right, none of the 3 that can be judged switches.
    assert str(latent[1]) == "0.750 [0.500, 1.000]"
    assert str(latent[2]) == "0.625 [0.500, 0.750]"
    assert str(latent[3]) == "12.5 [0.0, 25.0]"
    assert str(vocabulary[4]) == "62.5 [25.0, 100.0]"
    # Switching plus degeneracy: 0.125 against (0.5 + 0.25 + 0 + 1) / 2.
    assert str(latent[-1]) == "0.14"


def test_the_figure_is_drawn_from_the_file(file: Path, tmp_path: Path) -> None:
    drift_tables.draw(file, 2, tmp_path / "drift.svg")
    text = (tmp_path / "drift.svg").read_text()
    assert "latent" in text and "language switching" in text


def test_a_figure_of_runs_shorter_than_a_point_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^a point is 7 episodes, and a run of latent has 6; leave --figure out$"):
        drift_tables.draw(file, 7, tmp_path / "drift.svg")
