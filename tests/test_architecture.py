"""The direction of imports, read from the source, and what an import may cost.

`ollm_rl` <- `pretrain`; `ollm_rl` <- `envs` <- `agents` <- `experiments`. Only `ollm_rl/cli.py` looks
the other way, inside its functions.
"""

import ast
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("agents", "envs", "experiments", "pretrain")

# What each part may import of ollm_rl, besides itself; "core" is ollm_rl without the linked folders.
ALLOWED = {
    "core": set(),
    "pretrain": {"core"},
    "envs": {"core"},
    "agents": {"core", "envs"},
    "experiments": {"core", "pretrain", "envs", "agents"},
    "tests": {"core", *FOLDERS},
}
HEAVY = {"torch", "transformers"}
MODULE_PATH = re.compile(rf"ollm_rl\.({'|'.join(FOLDERS)})(\.\w+)*")


def python_files() -> dict[str, Path]:
    """Return every Python file of the project by its dotted module name, links not followed."""
    found = {}
    for folder in ("ollm_rl", *FOLDERS, "tests"):
        prefix = ["ollm_rl", folder] if folder in FOLDERS else [folder]
        for path, _, files in os.walk(ROOT / folder):
            for name in files:
                if name.endswith(".py"):
                    parts = [*prefix, *Path(path).relative_to(ROOT / folder).parts, name.removesuffix(".py")]
                    found[".".join(parts)] = Path(path, name)
    return found


def part_of(module: str) -> str | None:
    """Return the part of the project a dotted name belongs to, or None for other people's code."""
    top, *rest = module.split(".")
    if top == "tests":
        return "tests"
    if top != "ollm_rl":
        return None
    return rest[0] if rest and rest[0] in FOLDERS else "core"


def names_imported(node: ast.AST, module: str) -> list[str]:
    """Return the absolute dotted names that a statement or expression of ``module`` imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        # `module` ends in a file's name (`__init__` too), so one level up is always its package.
        package = module.split(".")[: -node.level] if node.level else []
        source = ".".join([*package, *([node.module] if node.module else [])])
        return [f"{source}.{alias.name}" for alias in node.names]  # the name may be a module: from ollm_rl import envs
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE_PATH.fullmatch(node.value):
        return [node.value]  # import_module("ollm_rl.envs"), or a table of lazy names
    return []


def walk(node: ast.AST, in_function: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node below ``node`` with whether it runs only when a function is called."""
    for child in ast.iter_child_nodes(node):
        yield child, in_function
        yield from walk(child, in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def violations(source: str, module: str) -> list[str]:
    """Return one line for each import in ``source`` that the module named ``module`` may not have."""
    part = part_of(module)
    assert part is not None
    found = []
    for node, in_function in walk(ast.parse(source)):
        for name in names_imported(node, module):
            where = f"{module}:{getattr(node, 'lineno', '?')} imports {name}"
            target = part_of(name)
            allowed = {None, part, *ALLOWED[part]}
            if module == "ollm_rl.cli" and in_function:
                allowed |= set(FOLDERS)
            if name.split(".")[0] in FOLDERS:
                found.append(f"{where}: use the name ollm_rl.{name}")
            elif target not in allowed:
                found.append(f"{where}: {part} may import only {sorted(ALLOWED[part]) or 'itself'}")
    return found


def test_imports_point_in_one_direction() -> None:
    files = python_files()
    assert {part_of(module) for module in files} == set(ALLOWED), "a part has no Python files: were they all read?"
    found = [line for module, path in files.items() for line in violations(path.read_text(encoding="utf-8"), module)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ollm_rl.model", "import ollm_rl.envs"),
        ("ollm_rl.model", "from ollm_rl import pretrain"),
        ("ollm_rl.model", "from .agents.ppo import PPO"),
        ("ollm_rl.__init__", "from . import agents"),
        ("ollm_rl.model", "def f():\n    from ollm_rl.experiments import tables"),
        ("ollm_rl.model", "import importlib\nimportlib.import_module('ollm_rl.envs.text')"),
        ("ollm_rl.model", "import tests.helpers"),
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
        ("ollm_rl.model", "import torch\nfrom ollm_rl.config import OptionConfig\nfrom . import losses"),
        ("ollm_rl.model", "import gymnasium.envs\nfrom stable_baselines3.common import envs"),
        ("ollm_rl.cli", "def main():\n    from ollm_rl.agents import ppo\n    import ollm_rl.pretrain.sft"),
        ("ollm_rl.envs.text", "from ollm_rl.envs.rewards import reward\nregister(entry_point='ollm_rl.envs.text:Env')"),
        ("ollm_rl.agents.ppo", "from ollm_rl.envs import text\nfrom ollm_rl import losses"),
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


def test_importing_the_package_loads_neither_torch_nor_transformers() -> None:
    loaded = modules_loaded_by(sys.executable, "-c", "import ollm_rl")
    assert "ollm_rl" in loaded
    assert not loaded & HEAVY


def test_the_command_line_answers_help_without_loading_torch_or_transformers() -> None:
    loaded = modules_loaded_by(str(Path(sysconfig.get_path("scripts"), "ollm-rl")), "--help")
    assert "ollm_rl.cli" in loaded
    assert not loaded & HEAVY
