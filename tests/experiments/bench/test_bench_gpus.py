"""The benchmark of GPUs: its table of one against several."""

import pytest

from ollm_rl.experiments.bench import gpus


def test_the_table_has_medians_and_the_ratios_of_rounds() -> None:
    def figures(speed: float, communication: float) -> gpus.Figures:
        return {"episodes_per_second": speed, "seconds_communication": communication}

    measured = {"learner": {"one": [figures(10, 0), figures(20, 0)], "several": [figures(15, 1), figures(40, 3)]}}
    _, _, speed, communication = gpus.table(measured, 2).splitlines()
    assert speed == "| learner | episodes_per_second | 15 | 27.5 | 1.750 (1.500, 2.000) |"
    assert communication == "| learner | seconds_communication | 0 | 2 | nan (nan, nan) |"


def test_workers_without_a_model_are_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpus", "--cases", "workers"])
    with pytest.raises(SystemExit):
        gpus.main()
    assert "--model is needed" in capsys.readouterr().err
