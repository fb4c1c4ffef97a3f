"""Training runs that are stopped, killed or end early resume as if nothing had happened."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ollm_rl.agents.training.trainer as trainer_module
from ollm_rl.agents.completions import read_completions
from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.loading import load_policy, trained_weights
from ollm_rl.agents.training.checkpoints import is_best
from ollm_rl.agents.training.run import train_ending
from ollm_rl.agents.training.trainer import Trainer, train
from ollm_rl.agents.training.update import Updater
from ollm_rl.errors import MissingError, UsageError
from ollm_rl.options.model import OptionModel
from ollm_rl.runs import open_run
from tests.processes import run_process
from tests.training_runs import ONES, assert_equal_runs, checkpoint, config, die_at_step, history, naming


def data_of(folder: Path, answer: str) -> str:
    """Problems with this answer."""
    rows = [{"question": f"Give {word}?", "answer": answer} for word in "abcdefg"]
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{folder / 'answers.jsonl'}"


@pytest.mark.parametrize(
    ("action_space", "algorithm"), [("options", "ppo"), ("options", "reinforce"), ("tokens", "reinforce")]
)
def test_a_run_stopped_in_the_middle_of_an_update_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str, action_space: str, algorithm: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    settings = {"action_space": action_space, "algorithm": algorithm}
    if action_space == "tokens":
        data = data_of(tmp_path, "4")  # which a few random texts state
    undisturbed = train(config(tmp_path / "undisturbed", model_folder, data, **settings))
    assert any(row["mixed_groups"] for row in history(undisturbed)), "there was nothing to learn"

    stopped = config(tmp_path / "stopped", model_folder, data, **settings)
    steps = 0
    whole_step = Updater.step

    def step(self: Updater, *arguments: Any) -> dict[str, torch.Tensor]:
        nonlocal steps
        steps += 1
        if steps == 6:  # the second of two in the third iteration
            raise KeyboardInterrupt
        return whole_step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    assert history(stopped.out) == history(undisturbed)[:2]
    train(stopped)
    assert_equal_runs(stopped.out, undisturbed)
    # The third iteration's completions were written before the stop and appear once.
    kept = [read_completions(out) for out in (stopped.out, undisturbed)]
    assert kept[0] == kept[1]
    assert [row["iteration"] for row in kept[0]] == [number for number in range(4) for _ in range(16)]

    before = checkpoint(stopped.out)
    train(stopped)  # the same command again finds nothing to do
    assert checkpoint(stopped.out) == before


@pytest.mark.parametrize("method", ["iterate", "_show"])  # before the third iteration, and once it is saved
def test_tensorboard_shows_every_iteration_of_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str, method: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    settings = config(tmp_path / "run", model_folder, data)
    whole = getattr(Trainer, method)

    def stopped(self: Trainer, *arguments: Any) -> Any:
        if len(self.history) == (2 if method == "iterate" else 3):
            raise KeyboardInterrupt
        return whole(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, method, stopped)
        with pytest.raises(KeyboardInterrupt):
            train(settings)
    train(settings)
    events = EventAccumulator(str(settings.out)).Reload()
    points = events.Scalars("rollout/reward")
    assert [point.step for point in points] == [16, 32, 48, 64]
    assert [point.value for point in points] == pytest.approx([row["reward"] for row in history(settings.out)])


def test_a_run_is_evaluated_while_it_trains_and_keeps_its_last_and_its_best_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    accuracies = iter([0.5, 0.75])
    asked: list[int] = []

    def evaluate(*arguments: Any, **settings: Any) -> dict[str, float]:
        asked.append(len(arguments[2]))
        names = ("low", "high", "language_switching_rate", "degeneracy_rate", "completion_tokens")
        return {"accuracy": next(accuracies), **dict.fromkeys(names, 0.0)}

    monkeypatch.setattr(trainer_module, "evaluate", evaluate)
    settings = {"iterations": 5, "eval_every": 32, "eval_data": data, "eval_limit": 3}
    out = train(config(tmp_path / "run", model_folder, data, **settings))
    assert [row.get("eval_accuracy") for row in history(out)] == [None, 0.5, None, 0.75, None]
    assert asked == [3, 3]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["000004.pt", "000005.pt"]
    assert (out / "best.pt").read_bytes() == (out / "checkpoints" / "000004.pt").read_bytes()
    events = EventAccumulator(str(out)).Reload()
    assert [(point.step, point.value) for point in events.Scalars("eval/accuracy")] == [(32, 0.5), (64, 0.75)]
    for name, number in ((out, 5), (out / "best.pt", 4), (out / "checkpoints" / "000004.pt", 4)):
        policy, _ = load_policy(str(name))
        saved = torch.load(out / "checkpoints" / f"{number:06d}.pt", weights_only=True)["policy"]
        assert all(torch.equal(weight, saved[key]) for key, weight in trained_weights(policy).items())


def test_without_evaluations_the_best_checkpoint_is_that_of_the_highest_reward() -> None:
    rows = [{"reward": reward} for reward in (0.25, 0.5, 0.5)]
    assert [is_best(rows[: count + 1]) for count in range(3)] == [True, True, False]
    evaluated = [{"reward": 0.9}, {"reward": 0.1, "eval_accuracy": 0.3}, {"reward": 0.95}]
    assert [is_best(evaluated[: count + 1]) for count in range(3)] == [True, True, False]


def test_a_run_stops_when_it_is_good_enough_and_stays_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    settings = config(tmp_path / "run", model_folder, data, eval_every=16, eval_data=data, stop_at=0.1)
    train(settings)
    (row,) = history(settings.out)
    accuracy = f"{100 * row['eval_accuracy']:.1f}%"
    line = f"run: accuracy {accuracy} reached stop_at=0.1; stopped after 1 of 4 iterations, 16 episodes"
    assert line in capsys.readouterr().err
    before = checkpoint(settings.out)
    train(settings)
    assert checkpoint(settings.out) == before
    assert line in capsys.readouterr().err
    assert train_ending(settings.out, settings) == (
        f"reward {row['reward']:.3f}, accuracy {accuracy} after 16 episodes; written to {settings.out}; "
        f"next: ollm-rl report {settings.out}"
    )


def test_a_finished_run_is_lengthened_as_if_it_had_been_that_long_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    whole = {"iterations": 4, "keep_checkpoints": 3, "eval_every": 48, "eval_data": data, "eval_limit": 3}
    long = train(config(tmp_path / "long", model_folder, data, **whole))
    run = train(config(tmp_path / "run", model_folder, data, iterations=2, keep_checkpoints=1))
    train(config(run, model_folder, data, **whole))
    assert_equal_runs(run, long)
    assert (run / "best.pt").read_bytes() == (run / "checkpoints" / "000003.pt").read_bytes()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["000002.pt", "000003.pt", "000004.pt"]
    saved, expected = (json.loads((out / "run.json").read_text())["config"] for out in (run, long))
    assert saved == expected


def test_a_run_that_was_good_enough_goes_on_to_a_higher_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    settings = {"eval_every": 16, "eval_data": data}
    out = train(config(tmp_path / "run", model_folder, data, stop_at=0.1, **settings))
    assert len(history(out)) == 1
    train(config(out, model_folder, data, **settings))
    assert len(history(out)) == 4


@pytest.mark.parametrize(
    "changes", [{"learning_rate": 0.5}, {"episodes": 8}, {"minibatches": 1}, {"seed": 1}, {"max_new_tokens": 2}]
)
def test_what_a_run_learns_cannot_be_changed_while_it_is_lengthened(
    tmp_path: Path, model_folder: Path, data: str, changes: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    open_run(run, "train", config(run, model_folder, data))
    before = (run / "run.json").read_text()
    (name,) = changes
    with pytest.raises(UsageError, match=rf"holds a different run \({name} is .* there, .* here\)"):
        open_run(run, "train", config(run, model_folder, data, iterations=9, **changes))
    assert (run / "run.json").read_text() == before


def test_a_callback_sees_every_saved_iteration_and_may_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    settings = config(tmp_path / "run", model_folder, data)
    seen: list[float] = []

    def on_iteration(row: dict[str, float]) -> bool:
        assert len(history(settings.out)) == len(seen) + 1
        seen.append(row["episodes"])
        return len(seen) < 2

    train(settings, on_iteration)
    assert seen == [16, 32]
    train(settings)  # without it, to the end
    assert len(history(settings.out)) == 4


def test_sigterm_ends_a_run_after_the_current_iteration_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    undisturbed = train(config(tmp_path / "undisturbed", model_folder, data))
    settings = config(tmp_path / "stopped", model_folder, data)
    whole = Updater.step

    def step(self: Updater, *arguments: Any) -> dict[str, torch.Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(Updater, "step", whole)
        return whole(self, *arguments)

    monkeypatch.setattr(Updater, "step", step)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        train(settings)
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert history(settings.out) == history(undisturbed)[:1]
    events = EventAccumulator(str(settings.out)).Reload()
    assert [point.step for point in events.Scalars("rollout/reward")] == [16]
    train(settings)
    assert_equal_runs(settings.out, undisturbed)


def train_until_killed(settings: RLConfig) -> None:
    """Runs in a process of its own, which dies in the second of two steps in the third iteration."""
    pytest.MonkeyPatch().setattr(OptionModel, "option_tokens", naming(ONES))
    die_at_step(6)
    train(settings)


def test_a_run_killed_in_the_middle_of_an_iteration_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    undisturbed = train(config(tmp_path / "undisturbed", model_folder, data))
    killed = config(tmp_path / "killed", model_folder, data)
    ended = run_process(tmp_path / "log", train_until_killed, killed)
    assert ended == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert history(killed.out) == history(undisturbed)[:2]
    train(killed)
    assert_equal_runs(killed.out, undisturbed)


@pytest.mark.parametrize("action_space", ["options", "tokens"])
def test_a_run_with_a_replay_resumes_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str, action_space: str
) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    settings: dict[str, Any] = {"action_space": action_space, "ratio": "topr", "replay": 2, "replay_steps": 2}
    settings |= {"kl_coef": 0.01, "kl_target": 0.05, "keep_checkpoints": 1}
    undisturbed = train(config(tmp_path / "undisturbed", model_folder, data, **settings))
    stopped = config(tmp_path / "stopped", model_folder, data, **settings)
    train(stopped, lambda row: row["iteration"] < 2)
    assert len(history(stopped.out)) == 3
    train(stopped)
    assert_equal_runs(stopped.out, undisturbed)
    # The last checkpoint needs the last two.
    assert sorted(path.name for path in (stopped.out / "replay").iterdir()) == ["000002.pt", "000003.pt"]


def test_a_lost_replay_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, data: str) -> None:
    monkeypatch.setattr(OptionModel, "option_tokens", naming(ONES))
    stopped = config(tmp_path / "stopped", model_folder, data, ratio="topr", replay=2)
    train(stopped, lambda row: False)
    (stopped.out / "replay" / "000000.pt").unlink()
    with pytest.raises(MissingError, match=r"replay/000000.pt is missing, .* give another out folder"):
        train(stopped)
