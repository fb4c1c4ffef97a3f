"""The imports of every Python file of the project, read from its source, late and type-only ones included."""

import ast
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.places import ROOT

FOLDERS = ("agents", "envs", "experiments", "pretrain")
MODULE_PATH = re.compile(r"ollm_rl(\.\w+)+")


@cache
def python_files() -> dict[str, Path]:
    """Every Python file and stub by its dotted module name (a folder's for its ``__init__``), without links."""
    found = {}
    for folder in ("ollm_rl", *FOLDERS, "tests"):
        prefix = ["ollm_rl", folder] if folder in FOLDERS else [folder]
        for path, _, files in os.walk(ROOT / folder):
            for name in files:
                if name.endswith((".py", ".pyi")):
                    parts = [*prefix, *Path(path).relative_to(ROOT / folder).parts, name.partition(".")[0]]
                    dotted = ".".join(parts).removesuffix(".__init__")
                    if (
                        name.endswith(".pyi") or dotted not in found
                    ):  # the stub has the names that a lazy ``__init__`` exports
                        found[dotted] = Path(path, name)
    return found


def names_imported(node: ast.AST, module: str, *, is_door: bool = False) -> list[str]:
    """The absolute dotted names that a statement or expression of ``module`` imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parts = module.split(".")
        package = parts[: len(parts) + is_door - node.level] if node.level else []
        source = ".".join([*package, *([node.module] if node.module else [])])
        return [f"{source}.{alias.name}" for alias in node.names]  # the name may be a module: from ollm_rl import envs
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE_PATH.fullmatch(node.value):
        return [node.value]  # import_module("ollm_rl.envs")
    return []


def walk(node: ast.AST, in_function: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below ``node`` with whether it runs only when a function is called."""
    for child in ast.iter_child_nodes(node):
        yield child, in_function
        yield from walk(child, in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def imports_of(source: str, module: str, *, is_door: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Each name that a source imports, its line, and whether the import is late (inside a function)."""
    for node, late in walk(ast.parse(source)):
        for name in names_imported(node, module, is_door=is_door):
            yield name, getattr(node, "lineno", 0), late


@cache
def module_graph() -> dict[str, set[str]]:
    """For each module, the modules of the project that it imports."""
    files = python_files()
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        names = imports_of(path.read_text(encoding="utf-8"), module, is_door=path.stem == "__init__")
        found = {_module_of(name, files) for name, _, _ in names}
        # A module's own folder named in a string, as for its templates, is not an import.
        graph[module] = {name for name in found if name and not f"{module}.".startswith(f"{name}.")}
    return graph


def room_graph() -> dict[str, set[str]]:
    """For each room, the rooms that its modules import."""
    rooms: dict[str, set[str]] = {}
    for module, imported in module_graph().items():
        rooms.setdefault(room_of(module), set()).update(room_of(name) for name in imported)
    return {room: others - {room} for room, others in rooms.items()}


def room_of(module: str) -> str:
    """The folder of a module; a module next to folders is a separate room."""
    path = python_files()[module]
    folder = module if path.stem == "__init__" else module.rpartition(".")[0]
    has_rooms = any(path.is_dir() and (path / "__init__.py").exists() for path in path.parent.iterdir())
    return module if has_rooms else folder


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle in a graph, as its nodes in order; empty if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for following in sorted(graph.get(node, ())):
            if found := visit(following, [*path, node]):
                return found
        done.add(node)
        return []

    return next(filter(None, (visit(node, []) for node in sorted(graph))), [])


def _module_of(name: str, files: dict[str, Path]) -> str | None:
    """The project module that a dotted name is, or is in; None for other packages."""
    while name:
        if name in files:
            return name
        name = name.rpartition(".")[0]
    return None
