"""Without the packages of the extras every command works that does not need them; the others say what to install."""

import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from transformers import AttentionInterface

from tests.imports import imports_of, python_files
from tests.places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
OPTIONAL = {"ray": "ray", "stable_baselines3": "sb3", "sb3_contrib": "sb3"}  # package -> extra
TOPS = {"ollm_rl", *OPTIONAL}


def modules_of(tops: set[str]) -> dict[str, Any]:
    """The loaded modules of these packages."""
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in tops}


@pytest.fixture
def without_extras() -> Iterator[None]:
    """``ollm_rl`` is imported again, and Ray and SB3 cannot be."""
    before, attention = modules_of(TOPS), dict(AttentionInterface._global_mapping)
    for name in before:
        del sys.modules[name]
    missing: dict[str, Any] = dict.fromkeys(OPTIONAL)  # None: an import raises ModuleNotFoundError
    sys.modules.update(missing)
    yield
    for name in modules_of(TOPS):
        del sys.modules[name]
    sys.modules.update(before)
    AttentionInterface._global_mapping |= attention  # the modules of before know nothing of what others registered


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that is refused, and returns the line that it prints."""

    def run(*arguments: object) -> str:
        assert import_module("ollm_rl.cli").main([str(argument) for argument in arguments]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ollm-rl: ")]
        return line

    return run


def test_only_sweeps_and_comparisons_cannot_be_imported_without_ray_and_sb3(without_extras: None) -> None:
    cli, missing = import_module("ollm_rl.cli"), import_module("ollm_rl.errors").MissingError
    refused = set()
    for name, command in cli.COMMANDS.items():
        try:
            resolve_name(command.run)
        except missing as error:
            assert str(error).endswith("; run: pip install 'ollm-rl[ray]'")
            refused.add(name)
    assert refused == {"sweep", "compare"}


def test_training_needs_extras_only_for_workers_and_agents_of_sb3(
    without_extras: None, refusal: Callable[..., str], model_folder: Path, data: str, tmp_path: Path
) -> None:
    sizes = ["--iterations", 1, "--episodes", 16, "--max_new_tokens", 3, "--num_slots", 8, "--device", "cpu"]
    train = ["train", "--model", model_folder, "--data", data, *sizes, "--out", tmp_path / "run"]
    ray, sb3 = refusal(*train, "--workers", 2), refusal(*train, "--agent", "sb3-ppo")
    assert re.fullmatch(r"ollm-rl: .*ray.*; run: pip install 'ollm-rl\[ray\]'", ray)
    assert re.fullmatch(r"ollm-rl: .*stable_baselines3.*; run: pip install 'ollm-rl\[sb3\]'", sb3)
    assert not (tmp_path / "run").exists()
    assert import_module("ollm_rl.cli").main(list(map(str, train))) == 0


def test_no_module_of_a_command_without_extras_imports_them_later() -> None:
    found = {
        module
        for module, path in python_files().items()
        if module.startswith("ollm_rl.") and not module.startswith("ollm_rl.experiments.bench")
        for name, _, _ in imports_of(path.read_text(encoding="utf-8"), module)
        if name.partition(".")[0] in OPTIONAL
    }
    assert found == {
        "ollm_rl.agents.training.sb3",
        "ollm_rl.agents.training.sb3_files",
        "ollm_rl.agents.workers.cluster",
        "ollm_rl.agents.workers.ray_workers",
        "ollm_rl.envs.sb3",
        "ollm_rl.experiments.ray_tune",
        "ollm_rl.experiments.trials",
    }


def test_the_extras_are_declared_and_the_wheel_itself_does_not_need_them() -> None:
    names = {extra: {re.split(r"[\[>=<]", entry)[0] for entry in entries} for extra, entries in EXTRAS.items()}
    assert names["ray"] == {"ray"} and names["sb3"] == {"stable-baselines3", "sb3-contrib"}
    assert not (names["ray"] | names["sb3"]) & {re.split(r"[\[>=<]", entry)[0] for entry in PROJECT["dependencies"]}
    assert EXTRAS["all"] == ["ollm-rl[ray,sb3,rg,gguf]"] and "ollm-rl[all]" in EXTRAS["dev"]


def test_the_lowest_versions_are_those_of_the_project() -> None:
    extras = [entry for name in ("ray", "sb3", "rg", "gguf") for entry in EXTRAS[name]]
    declared = re.findall(
        r"^([\w-]+)(?:\[\w+\])?>=([\d.]+)", "\n".join([*PROJECT["dependencies"], *extras]), re.MULTILINE
    )
    pinned = re.findall(r"^([\w-]+)==(.+)$", (ROOT / "constraints-lowest.txt").read_text(), re.MULTILINE)
    assert len(declared) == len(PROJECT["dependencies"]) + len(extras)
    assert [entry for entry in declared if entry[0] != "torch"] == pinned
