"""Random search: equal numbers of trials, ranges that are widened at their edges, and settings of one run."""

from pathlib import Path
from typing import Any

import pytest

import ollm_rl.experiments.tuning as tuning
from ollm_rl.agents.config import RLConfig
from ollm_rl.errors import UsageError
from ollm_rl.experiments.config import CompareConfig
from ollm_rl.experiments.tuning import method_config, ranges_beyond, tune_methods


def config(out: Path, **changes: Any) -> CompareConfig:
    settings: dict[str, Any] = {
        "out": out,
        "baseline": "vocabulary",
        "train": {"model": "m"},
        "methods": {
            "latent": {"random": {"learning_rate": {"loguniform": [1e-3, 1e-2]}}},
            "vocabulary": {
                "train": {"action_space": "tokens"},
                "random": {"learning_rate": {"loguniform": [1e-4, 1e-3]}},
            },
        },
        "num_trials": 4,
    }
    return CompareConfig(**settings | changes)


class Scored:
    """Stands in for training: the score of a run is a function of its settings."""

    def __init__(self, score: Any) -> None:
        self.score, self.runs = score, list[RLConfig]()

    def run_trials(self, state: Path, configs: dict[str, RLConfig], resources: Any) -> dict[str, str]:
        self.runs += configs.values()
        return {}

    def history(self, out: Path) -> RLConfig:
        (run,) = (run for run in self.runs if run.out == out)
        return run

    def curve(self, run: RLConfig, window: int) -> Any:
        class Curve:
            mean_reward = self.score(run)

        return Curve


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(score: Any) -> Scored:
        stand_in = Scored(score)
        monkeypatch.setattr(tuning, "run_trials", stand_in.run_trials)
        monkeypatch.setattr(tuning, "history", stand_in.history)
        monkeypatch.setattr(tuning, "Curve", stand_in.curve)
        return stand_in

    return use


def test_every_method_has_the_same_number_of_trials_and_seeds(tmp_path: Path, scored: Any) -> None:
    trained = scored(lambda run: 0.5 if 2e-3 < run.learning_rate < 8e-3 or 2e-4 < run.learning_rate < 8e-4 else 0.1)
    found = tune_methods(config(tmp_path))
    spaces = [run.action_space for run in trained.runs]
    assert spaces.count("options") == spaces.count("tokens") == 4 * 2
    assert {run.seed for run in trained.runs} == {1000, 1001}
    assert 2e-3 < found["latent"].settings["learning_rate"] < 8e-3 and found["latent"].notes == []


def test_trials_that_take_longest_start_first(tmp_path: Path, scored: Any) -> None:
    trained = scored(lambda run: 1.0)
    tune_methods(config(tmp_path, random={"replay": {"choice": [0, 4]}}, max_widenings=0))
    assert [run.action_space for run in trained.runs] == ["tokens"] * 8 + ["options"] * 8
    replays = [run.replay for run in trained.runs[:8]]
    assert replays == sorted(replays, reverse=True) and len(set(replays)) == 2


def test_the_best_at_an_edge_widens_the_range_and_says_so(tmp_path: Path, scored: Any) -> None:
    trained = scored(lambda run: run.learning_rate)  # higher is always better
    found = tune_methods(config(tmp_path, num_trials=40, max_widenings=2))
    rates = [run.learning_rate for run in trained.runs if run.action_space == "options"]
    assert len(rates) == 2 * (40 + 20 + 20)
    assert max(rates) > 3e-2 and found["latent"].settings["learning_rate"] == max(rates)
    assert [note.split(" by ")[0] for note in found["latent"].notes[:1]] == ["learning_rate widened"]
    assert found["latent"].notes[-1].startswith("learning_rate best at the edge; not tried:")


def test_a_range_is_not_widened_to_values_that_a_run_refuses(tmp_path: Path, scored: Any) -> None:
    trained = scored(lambda run: -run.episodes)
    settings = {"learning_rate": {"choice": [1e-3]}, "episodes": {"choice": [8, 16]}}
    found = tune_methods(config(tmp_path, methods={"vocabulary": {"random": settings}}))
    assert found["vocabulary"].settings["episodes"] == 8
    assert {run.episodes for run in trained.runs} == {8, 16}, "no 4, which is less than a group"


def test_ends_of_a_range_may_be_text_and_choices_mappings(tmp_path: Path, scored: Any) -> None:
    trained = scored(lambda run: run.learning_rate + run.rewards.format)
    random = {
        "learning_rate": {"loguniform": ["1e-3", "1e-2"]},
        "rewards": {"choice": [{"format": 0.001}, {"format": 0.002}]},
    }
    found = tune_methods(config(tmp_path, methods={"vocabulary": {"random": random}}, num_trials=20))
    rates = [run.learning_rate for run in trained.runs]
    assert max(rates) > 1e-2 and found["vocabulary"].settings["learning_rate"] == max(rates)


@pytest.mark.parametrize("failing", ["tuning-0", "tuning-1"])
def test_only_a_first_round_in_which_all_trials_fail_ends_a_comparison(
    tmp_path: Path, scored: Any, failing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = scored(lambda run: run.learning_rate)  # higher is always better, so the range is widened

    def run_trials(state: Path, configs: dict[str, RLConfig], resources: Any) -> dict[str, str]:
        trained.run_trials(state, configs, resources)
        return dict.fromkeys(configs, "not finite") if state.parent.name == failing else {}

    monkeypatch.setattr(tuning, "run_trials", run_trials)
    comparison = config(tmp_path, num_trials=40, max_widenings=1)
    if failing == "tuning-0":
        with pytest.raises(UsageError, match="all trials of method 'latent' failed; not finite"):
            tune_methods(comparison)
        return
    found = tune_methods(comparison)
    first = [run.learning_rate for run in trained.runs if run.action_space == "options" and "tuning-0" in str(run.out)]
    assert found["latent"].settings["learning_rate"] == max(first) and len(trained.runs) == 2 * 2 * (40 + 20)
    assert "failed: latent-00-seed1000" in capsys.readouterr().out


def test_a_method_without_random_settings_is_not_tuned(tmp_path: Path, scored: Any) -> None:
    trained = scored(lambda run: 1.0)
    found = tune_methods(config(tmp_path, methods={"vocabulary": {"train": {"learning_rate": 1e-4}}}))
    assert trained.runs == [] and found["vocabulary"].settings == {}


@pytest.mark.parametrize(
    ("specification", "value", "expected"),
    [
        ({"loguniform": [1e-3, 1e-1]}, 1e-2, None),
        ({"loguniform": [1e-3, 1e-1]}, 0.09, [10**-1.2, 1.0]),
        ({"loguniform": [1e-3, 1e-1]}, 1.1e-3, [1e-4, 10**-2.8]),
        ({"uniform": [0.0, 1.0]}, 0.95, [0.9, 1.5]),
        ({"choice": [16, 32, 64]}, 32, None),
        ({"choice": [16, 32, 64]}, 64, [64, 128]),
        ({"choice": [16, 32, 64]}, 16, [16, 8]),
        ({"choice": [1, 2]}, 1, None),  # half a minibatch does not exist
        ({"choice": [0, 4]}, 4, None),  # no ratio leads on from 0
        ({"choice": ["a", "b"]}, "b", None),
    ],
)
def test_ranges_go_on_beyond_an_edge(specification: Any, value: Any, expected: Any) -> None:
    found = ranges_beyond({"x": value}, {"x": specification})
    if expected is None:
        assert found == {}
    else:
        ((kind, values),) = found["x"].items()
        assert [kind] == list(specification) and values == pytest.approx(expected)


def test_the_iterations_of_a_run_follow_from_its_episodes(tmp_path: Path) -> None:
    run = method_config(config(tmp_path, max_episodes=100), "latent", {"episodes": 32}, 7, tmp_path)
    assert (run.iterations, run.episodes, run.seed, run.device) == (3, 32, 7, "cpu")
    with pytest.raises(UsageError, match="max_episodes=8 is less than an iteration of 256; raise it"):
        method_config(config(tmp_path, max_episodes=8, window=8), "latent", {}, 7, tmp_path)
    message = r"window=96 is more than the 64 episodes of a run \(1 iterations of 64\); lower it, or raise max_episodes"
    with pytest.raises(UsageError, match=message):
        method_config(config(tmp_path, max_episodes=100), "latent", {"episodes": 64}, 7, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "none"}, "baseline='none' is no method; give one of latent, vocabulary"),
        ({"seeds": [1000, 2]}, "seeds and tuning_seeds share 1000; the final runs need fresh seeds"),
        ({"seeds": []}, r"seeds=\[\] must be at least one"),
        ({"methods": {"vocabulary": {"grid": {}}}}, "method 'vocabulary' has grid; give train and random"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config(tmp_path, **changes)
