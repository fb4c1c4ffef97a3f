"""The decoding benchmark: its figures from numbers worked by hand, and a small run that is not run twice."""

import json
from pathlib import Path

import pytest

from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.experiments.bench import decode as bench_decode
from ollm_rl.experiments.bench import profile_decode
from ollm_rl.experiments.bench.contenders import Workload
from ollm_rl.experiments.bench.decode_figures import ratios
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.tiny_models import tiny_model


def test_ratios_are_the_lowest_of_all_cases_against_the_better_cache() -> None:
    cases = [
        {"tokens_per_second": {"engine": 90, "hf_generate dynamic": 20, "hf_generate static": 30, "gym_loop": 9}},
        {"tokens_per_second": {"engine": 80, "hf_generate dynamic": 20, "gym_loop": 4, "engine, policy outside": 60}},
    ]
    assert ratios(cases) == {"engine/hf_generate": 3, "engine/gym_loop": 10}


def test_the_bound_counts_weights_once_a_step_and_every_slots_context() -> None:
    backbone = tiny_model("llama")
    model = OptionModel(backbone, OptionConfig(num_options=2, width=8))
    work = Workload(model, OptionPolicy(model), None, [[5] * 6, [5] * 10], [4, 4], slots=2, seed=0)
    weights = 4 * sum(parameter.numel() for parameter in backbone.parameters())
    # 2 layers of 2 key and 2 value heads of 8 float32 numbers per token; 8 and 12 tokens of context on average.
    traffic = weights + 2 * 10 * 2 * 4 * 8 * 4
    assert bench_decode.bound(work, 1e6) == pytest.approx(2 * 1e6 / traffic)


@pytest.mark.slow
def test_a_small_run_writes_its_figures_and_is_not_run_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_decode, "bandwidth", lambda device: 1e9)
    command = ["bench", "--device=cpu", "--slots=2", "--waves=2", "--repeats=1", "--new-tokens", "2", "4"]
    monkeypatch.setattr(
        "sys.argv", [*command, "--json", str(tmp_path / "found.json"), "--plot", str(tmp_path / "p.svg")]
    )
    bench_decode.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ratios"].keys() == {"engine/hf_generate", "engine/gym_loop"}
    (case,) = found["cases"].values()
    assert case["failed"] == {} and case["episodes"] == 4 and 8 <= case["tokens"] <= 16
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")

    interrupted = {**found, "cases": {name: {**case, "turns": 0} for name, case in found["cases"].items()}}
    (tmp_path / "found.json").write_text(json.dumps(interrupted))
    bench_decode.main()
    assert [case["turns"] for case in json.loads((tmp_path / "found.json").read_text())["cases"].values()] == [1]

    monkeypatch.setattr(bench_decode, "measure", None)
    bench_decode.main()
    monkeypatch.setattr("sys.argv", [*command, "--seed", "1", "--json", str(tmp_path / "found.json")])
    with pytest.raises(SystemExit, match="holds other settings"):
        bench_decode.main()


def test_a_profile_shows_the_time_of_a_step_and_of_its_operations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["profile", "--backbone=tiny-arith", "--device=cpu", "--slots=2", "--context=5", "--new-tokens=4"]
    monkeypatch.setattr("sys.argv", [*command, "--rows=10"])
    profile_decode.main()
    total, *rows = capsys.readouterr().out.splitlines()[-11:]
    assert total.endswith("ms per step of all slots on the device, of which:")
    spent = [float(row.split()[0]) for row in rows]
    assert spent == sorted(spent, reverse=True) and 0 < sum(spent) <= float(total.split()[0]) + 0.01
    assert any("aten::mm" in row for row in rows)  # matrix products are among the longest operations of a model
