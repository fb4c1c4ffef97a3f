"""The direction of imports, read from the source (late and type-only ones too), and what an import may load."""

import ast
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.imports import FOLDERS, circle, imports_of, module_graph, python_files, room_graph, room_of
from tests.places import ROOT

BASE_MODULES = ("devices", "errors", "files", "processes", "runs", "safekeeping", "services", "settings", "streams")
BASE = {f"ollm_rl.{module}" for module in BASE_MODULES}
CORE = {f"ollm_rl.{room}" for room in ("answers", "backbones", "decode", "metrics", "options", "problems", "report")}
POLICIES = {"ollm_rl.agents.config", "ollm_rl.agents.completions", "ollm_rl.agents.policies"}
# For each room, the rooms that it may import. A module next to rooms is a separate room.
ALLOWED: dict[str, set[str]] = {
    "ollm_rl.errors": set(),
    "ollm_rl.streams": set(),
    "ollm_rl.devices": {"ollm_rl.errors"},
    "ollm_rl.files": {"ollm_rl.errors"},
    "ollm_rl.processes": {"ollm_rl.devices", "ollm_rl.errors"},
    "ollm_rl.runs": {"ollm_rl.errors", "ollm_rl.files", "ollm_rl.safekeeping"},
    "ollm_rl.safekeeping": {"ollm_rl.errors", "ollm_rl.cli"},  # cli: the program starts there
    "ollm_rl.settings": {"ollm_rl.errors"},
    "ollm_rl.services": {"ollm_rl.errors", "ollm_rl.files", "ollm_rl.processes", "ollm_rl.runs"},
    "ollm_rl.answers": BASE,
    "ollm_rl.backbones": BASE,
    "ollm_rl.options": BASE | {"ollm_rl.backbones"},
    "ollm_rl.problems": BASE | {"ollm_rl.answers"},
    "ollm_rl.metrics": BASE | {"ollm_rl.answers"},
    "ollm_rl.decode": BASE | {"ollm_rl.backbones"},
    "ollm_rl.report": BASE | {"ollm_rl.metrics"},
    "ollm_rl.envs": BASE | CORE,
    "ollm_rl.agents.config": BASE,
    "ollm_rl.agents.completions": BASE | CORE | {"ollm_rl.envs"},
    "ollm_rl.agents.policies": BASE | CORE | {"ollm_rl.agents.config"},
    "ollm_rl.agents.workers": BASE | CORE | POLICIES,
    "ollm_rl.agents.search": BASE | CORE | POLICIES,
    "ollm_rl.agents.evaluation": BASE | CORE | POLICIES | {"ollm_rl.envs"},
    "ollm_rl.agents.training": BASE
    | CORE
    | POLICIES
    | {"ollm_rl.envs", "ollm_rl.agents.workers", "ollm_rl.agents.evaluation"},
}
DOORS_BESIDE_ROOMS = {"ollm_rl", "ollm_rl.agents"}
HEAVY = {"torch", "transformers"}


def part_of(module: str) -> str | None:
    """The part of the project that a dotted name belongs to, or None for other people's code."""
    top, *rest = module.split(".")
    if top == "tests":
        return "tests"
    if top != "ollm_rl":
        return None
    return rest[0] if rest and rest[0] in FOLDERS else "core"


PARTS = {
    "core": {"core"},
    "pretrain": {"core", "pretrain"},
    "envs": {"core", "envs"},
    "agents": {"core", "envs", "agents"},
    "experiments": {"core", *FOLDERS},
    "tests": {"core", "tests", *FOLDERS},
}


def violations(source: str, module: str) -> list[str]:
    """One line for each import in ``source`` of a part that the module may not know."""
    part = part_of(module)
    assert part is not None
    found = []
    for name, line, late in imports_of(source, module):
        allowed = PARTS[part] | (set(FOLDERS) if module == "ollm_rl.cli" and late else set())
        if name.split(".")[0] in FOLDERS:
            found.append(f"{module}:{line} imports {name}: use the name ollm_rl.{name}")
        elif (target := part_of(name)) is not None and target not in allowed:
            found.append(f"{module}:{line} imports {name}: {part} may import only {sorted(allowed)}")
    return found


def test_parts_import_in_one_direction() -> None:
    files = {module: path for module, path in python_files().items() if path.suffix == ".py"}
    assert {part_of(module) for module in files} == set(PARTS), "a part has no Python files: were they all read?"
    found = [line for module, path in files.items() for line in violations(path.read_text(encoding="utf-8"), module)]
    assert not found, "\n".join(found)


def test_rooms_import_in_one_direction() -> None:
    graph = room_graph()
    assert set(ALLOWED) <= set(graph)
    found = {room: sorted(graph[room] - allowed) for room, allowed in ALLOWED.items() if graph[room] - allowed}
    assert not found
    rooms = {room for room in graph if part_of(room) in ("core", "envs", "agents")}
    assert rooms - set(ALLOWED) == {"ollm_rl.cli", *DOORS_BESIDE_ROOMS}, "a room has no line in ALLOWED"


def test_neither_modules_nor_rooms_import_each_other_in_a_circle() -> None:
    assert not circle(module_graph())
    assert not circle({room: others for room, others in room_graph().items() if room != "ollm_rl.cli"})


def test_a_planted_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d"]


def test_searches_and_evaluations_know_no_trainer() -> None:
    graph = module_graph()
    rooms = ("ollm_rl.agents.search", "ollm_rl.agents.evaluation")
    for module in graph:
        if room_of(module) in rooms:
            assert not [name for name in graph[module] if name.startswith("ollm_rl.agents.training")]


def test_files_and_functions_can_be_read_in_one_sitting() -> None:
    lengths = {}
    for module, path in python_files().items():
        source = path.read_text(encoding="utf-8")
        lengths[module] = source.count("\n")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 50, f"{module}.{node.name} is longer than 50 lines"
    assert {module for module, length in lengths.items() if length > 350} == set()
    assert sorted(lengths.values())[len(lengths) // 2] <= 150
    assert len([path for path in (ROOT / "ollm_rl").glob("*.py") if path.stem != "__init__"]) <= 6


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ollm_rl.options.model", "import ollm_rl.envs"),
        ("ollm_rl.options.model", "from ollm_rl import pretrain"),
        ("ollm_rl.options.model", "from ...ollm_rl.agents.ppo import PPO"),
        ("ollm_rl.runs", "from . import agents"),
        ("ollm_rl.runs", "from .agents.ppo import PPO"),
        ("ollm_rl.options.model", "def f():\n    from ollm_rl.experiments import tables"),
        ("ollm_rl.options.model", "if TYPE_CHECKING:\n    from ollm_rl.experiments import tables"),
        ("ollm_rl.options.model", "import importlib\nimportlib.import_module('ollm_rl.envs.text')"),
        ("ollm_rl.options.model", "import tests.helpers"),
        ("ollm_rl.cli", "from ollm_rl.agents import ppo"),
        ("ollm_rl.cli", "class C:\n    import ollm_rl.envs"),
        ("ollm_rl.pretrain.sft", "from ollm_rl.envs import text"),
        ("ollm_rl.envs.text", "from ollm_rl.pretrain import sft"),
        ("ollm_rl.envs.text", "from ..agents import ppo"),
        ("ollm_rl.agents.ppo", "if True:\n    import ollm_rl.pretrain.sft"),
        ("ollm_rl.agents.ppo", "from ollm_rl.experiments.tables import table"),
        ("ollm_rl.agents.ppo", "import envs"),
        ("tests.test_envs", "from agents.ppo import PPO"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "ollm_rl.options.model",
            "import torch\nfrom ollm_rl.options.config import OptionConfig\nfrom . import losses",
        ),
        ("ollm_rl.options.model", "import gymnasium.envs\nfrom stable_baselines3.common import envs"),
        ("ollm_rl.cli", "def main():\n    from ollm_rl.agents import ppo\n    import ollm_rl.pretrain.sft"),
        ("ollm_rl.envs.text", "from ollm_rl.envs.rewards import reward\nregister(entry_point='ollm_rl.envs.text:Env')"),
        ("ollm_rl.agents.ppo", "from ollm_rl.envs import text\nfrom ollm_rl.options import losses"),
        ("ollm_rl.experiments.tables", "import ollm_rl.agents, ollm_rl.pretrain, ollm_rl.envs"),
    ],
)
def test_a_permitted_import_passes(module: str, source: str) -> None:
    assert violations(source, module) == []


def modules_loaded_by(*command: str) -> set[str]:
    """Run a command in a fresh interpreter, require exit code 0, and return what it imported."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    timings: list[str] = []
    errors: list[str] = []
    for line in done.stderr.splitlines():
        (timings if line.startswith("import time:") else errors).append(line)
    assert done.returncode == 0, "\n".join([f"{command} ended with {done.returncode}:", done.stdout, *errors])
    return {line.rpartition("|")[2].strip() for line in timings}


DOORS = [f"ollm_rl.{room}" for room in ("answers", "agents", "backbones", "decode", "metrics", "options", "problems")]


def test_importing_the_package_and_its_doors_loads_neither_torch_nor_transformers() -> None:
    loaded = modules_loaded_by(sys.executable, "-c", f"import ollm_rl, {', '.join(DOORS)}")
    assert {"ollm_rl", *DOORS} <= loaded
    assert not loaded & HEAVY


def test_checking_an_answer_or_a_language_loads_neither_torch_nor_transformers() -> None:
    names = "from ollm_rl.answers import verify, VerifierPool, extract_answer"
    more = "from ollm_rl.metrics import detect_language, switches_language, degeneracy"
    assert not modules_loaded_by(sys.executable, "-c", f"{names}\n{more}") & HEAVY


def test_the_command_line_answers_help_without_loading_torch_or_transformers() -> None:
    loaded = modules_loaded_by(str(Path(sysconfig.get_path("scripts"), "ollm-rl")), "--help")
    assert "ollm_rl.cli" in loaded
    assert not loaded & HEAVY
