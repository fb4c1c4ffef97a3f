"""What a run of reinforcement learning shows in TensorBoard."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ollm_rl.agents.training.board import tag
from ollm_rl.agents.training.trainer import train
from ollm_rl.options.model import OptionModel
from tests.training_runs import ONES, config, naming


def test_a_run_shows_its_settings_gradients_spread_and_completions_and_nothing_constant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    out = train(config(tmp_path / "run", model_folder, data))
    events = EventAccumulator(str(out)).Reload()
    tags = events.Tags()
    assert {
        "rollout/reward",
        "rollout/reward_spread",
        "train/grad_norm",
        "train/learning_rate",
        "train/entropy",
    } <= set(tags["scalars"])
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    flat = {name for name in tags["scalars"] if len({point.value for point in events.Scalars(name)}) == 1}
    assert flat <= {"train/learning_rate"}
    rows = [json.loads(line) for line in (out / "completions" / "000001.jsonl").read_text().splitlines()]
    rewards = [row["reward"] for row in rows]
    mean = sum(rewards) / 16
    spread = (sum((reward - mean) ** 2 for reward in rewards) / 16) ** 0.5
    assert events.Scalars("rollout/reward_spread")[1].value == pytest.approx(spread)
    (_, second, *_) = events.Tensors("completions/2/text_summary")
    text = second.tensor_proto.string_val[0].decode()
    assert second.step == 32
    third = rows[8]  # the first of the third prompt's four completions
    verdict = "right" if third["correct"] else "wrong"
    assert text.startswith(f"reward {third['reward']:.3f}, {verdict} (answer: {third['answer']})\n")
    assert text.endswith(f"    {third['question']}\n    \n    {third['completion']}")


def test_metrics_are_grouped_as_in_stable_baselines3() -> None:
    names = ("eval_accuracy", "seconds_rollout", "kl_coef", "grad_norm", "reward_spread", "staleness")
    assert [tag(name) for name in names] == [
        "eval/accuracy",
        "time/seconds_rollout",
        "train/kl_coef",
        "train/grad_norm",
        "rollout/reward_spread",
        "time/staleness",
    ]
