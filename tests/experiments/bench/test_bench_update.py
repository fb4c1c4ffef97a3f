"""The benchmark of updates: what a process measures, and the table of one commit against another."""

import json
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.experiments.bench import update


@pytest.mark.parametrize("part", ["update", "lora"])
def test_a_part_measures_its_seconds_memory_and_terms(
    part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(update.TINY, "vocab_size", 300)
    monkeypatch.setattr("sys.argv", ["update", "--run", part, "--episodes", "8", "--new-tokens", "4", "--steps", "1"])
    update.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["seconds"] > 0 and found["peak_bytes"] >= 0
    names = {"update": {"policy_loss", "entropy", "grad_norm"}, "lora": {"loss"}}
    assert found["terms"].keys() == names[part]


def test_the_table_has_medians_ratios_of_pairs_and_the_largest_difference() -> None:
    def run(seconds: float, peak: float, loss: float) -> dict[str, Any]:
        return {"seconds": seconds, "peak_bytes": peak, "terms": {"loss": loss}}

    pairs = [(run(4, 3e9, 2), run(2, 1e9, 2)), (run(2, 5e9, 4), run(1.5, 1e9, 5))]
    *_, row = update.table({"lora": pairs}).splitlines()
    assert row == "| lora | 3.00 | 1.75 | 0.62 (0.50, 0.75) | 4.00 | 1.00 | 2.5e-01 |"


def test_a_folder_without_the_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in ([], ["--against", str(tmp_path)]):  # an installed package would be measured in its place
        monkeypatch.setattr("sys.argv", ["update", *argv])
        with pytest.raises(SystemExit):
            update.main()
        assert "has no ollm_rl; give a checkout" in capsys.readouterr().err
