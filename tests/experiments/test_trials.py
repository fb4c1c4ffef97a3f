"""The trials of a sweep: random draws, and which settings run."""

from pathlib import Path

from ollm_rl.experiments.config import SweepConfig
from ollm_rl.experiments.trials import plan


def test_random_settings_are_drawn_once_for_all_seeds_and_equal_in_equal_sweeps(tmp_path: Path) -> None:
    config = SweepConfig(
        out=tmp_path,
        train={"model": "m"},
        grid={"algorithm": ["ppo", "reinforce"]},
        random={"learning_rate": {"loguniform": [1e-4, 1e-2]}, "max_grad_norm": {"uniform": [0.5, 1.0]},
                "minibatches": {"choice": [2, 4]}},
        num_samples=20,
        seeds=[3, 4],
    )  # fmt: skip
    trials = plan(config)
    assert len(trials) == 20 * 2 * 2
    assert [trial.config for trial in trials.values()] == [trial.config for trial in plan(config).values()]
    rates = [trial.config.learning_rate for trial in trials.values()]
    # A draw is the same for the whole grid and all seeds.
    assert all(len(set(rates[start : start + 4])) == 1 for start in range(0, 80, 4))
    drawn = rates[::4]
    assert len(set(drawn)) == 20 and all(1e-4 <= rate <= 1e-2 for rate in drawn)
    assert 4 <= sum(rate < 1e-3 for rate in drawn) <= 16  # half of them on average, as the logarithm is uniform
    assert all(
        0.5 <= trial.config.max_grad_norm <= 1 and trial.config.minibatches in (2, 4) for trial in trials.values()
    )
    assert {type(trial.varied["minibatches"]) for trial in trials.values()} == {int}  # not numpy's, which JSON refuses
    assert [trial.config.seed for trial in trials.values()] == [3, 4] * 40
    other = plan(SweepConfig(**{**vars(config), "sample_seed": 1}))
    assert {trial.config.learning_rate for trial in other.values()}.isdisjoint(drawn)


def test_a_choice_that_is_drawn_again_runs_once(tmp_path: Path) -> None:
    random = {"rewards": {"choice": [{"format": 0.5}, {"length": 0.5}]}}
    config = SweepConfig(
        out=tmp_path, train={"model": "m"}, random=random, num_samples=20, grid={"epochs": [1, 2]}, seeds=[3, 4]
    )
    trials = plan(config).values()
    drawn = [(trial.config.rewards.format, trial.config.epochs, trial.config.seed) for trial in trials]
    assert sorted(drawn) == [(reward, epochs, seed) for reward in (0.0, 0.5) for epochs in (1, 2) for seed in (3, 4)]
