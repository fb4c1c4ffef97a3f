"""The pages made from the code: every public name is documented, every setting described."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType

import pytest
import yaml

from ollm_rl.cli import COMMANDS
from ollm_rl.settings import sections
from tests.imports import python_files
from tests.places import ROOT


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "hooks" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exported(stub: Path, room: str) -> Iterator[tuple[str, str]]:
    """The module and the name of everything that a door's stub exports."""
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            yield from ((f"{room}.{node.module}", alias.name) for alias in node.names)


def undocumented(source: str, name: str) -> list[str]:
    """The parts of a class or function without a docstring: itself, and its public methods."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            parts = [node, *(part for part in getattr(node, "body", []) if isinstance(part, ast.FunctionDef))]
            bare = [part for part in parts if not part.name.startswith("_") and not ast.get_docstring(part)]
            # The linter is told where the class describes a method.
            return [part.name for part in bare if "noqa: D102" not in source.splitlines()[part.lineno - 1]]
    return [name]  # neither a class nor a function of this module


def test_every_public_name_is_documented_and_has_a_place_in_the_pages(reference: ModuleType) -> None:
    pages = reference.api_pages()
    files, missing, count = python_files(), [], 0
    for room in reference.ROOMS:
        page = pages[f"api/{room}.md"]
        for module, name in exported(files[room], room):
            count += 1
            missing += [f"{module}: {part}" for part in undocumented(files[module].read_text(), name)]
            missing += [] if f".{name}\n" in page else [f"{page}: {name}"]
    assert count > 60
    assert not missing


def test_what_lacks_a_docstring_is_found() -> None:
    methods = ['def told(self):\n        """Told."""', "def untold(self): ...", "def _own(self): ..."]
    source = "\n    ".join(["class A:", '"""Told."""', *methods])
    assert undocumented(source, "A") == ["untold"]
    assert undocumented("def f(): ...", "f") == ["f"]


def test_doors_without_a_page_are_those_that_users_do_not_open(reference: ModuleType) -> None:
    doors = {name for name, path in python_files().items() if path.name == "__init__.pyi"}
    # The names of the first are in the door of agents.
    rooms = ("agents.config", "files", "safekeeping", "services", "settings")
    assert doors - set(reference.ROOMS) == {f"ollm_rl.{room}" for room in rooms}


def test_every_setting_of_every_command_is_described_in_the_page(reference: ModuleType) -> None:
    text = reference.settings_page()
    for name, command in COMMANDS.items():
        assert f"## ollm-rl {name}\n" in text
        for section in sections(resolve_name(command.config)):
            for field, _, description in reference.described(section):
                assert description, f"{section.__name__}.{field.name} has no description"
    assert (
        "- **`--options.num_options`** (whole number, at least 1 and at most 10,000; default `10`) - Number of" in text
    )
    assert "- **`--out`** (path; required) - Folder of the run" in text
    assert "- **`--compiled`** (true or false; default `false`) - Compile" in text
    assert "- **`--agent`** (`ollm-rl`, `sb3-ppo`, " in text
    assert "- **`--gae_lambda`** (number, at least 0 and at most 1; default `1.0`) - Lambda of GAE" in text
    assert "- **`--stop_at`** (number, more than 0 and at most 1; none by default) - Stop early" in text
    assert (
        "- **`--thresholds`** (list of: number, at least -1,000 and at most 1,000; default `0.9` `0.95`) - Mean" in text
    )


def test_every_page_stands_in_the_contents(reference: ModuleType) -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed: set[str] = set()

    def visit(entry: object) -> None:
        if isinstance(entry, str):
            listed.add(entry)
        for part in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            visit(part)

    visit(yaml.safe_load(text)["nav"])
    native = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    results = {f"results/{path.name}" for path in (ROOT / "experiments" / "results").glob("*.md")}
    # The site has another index of results.
    results = {"results/claims.md" if name == "results/README.md" else name for name in results}
    elsewhere = {"index.md", "notebook.md", "settings.md", "changelog.md", "contributing.md", "security.md"}
    assert listed == native | results | elsewhere | set(reference.api_pages())
