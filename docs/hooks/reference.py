"""Pages that are made: the settings of every command, the public names of every room, and the notebook.

It imports no mkdocs, so that tests read the same pages.
"""

import inspect
import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, asdict
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object

from ollm_rl.cli import COMMANDS
from ollm_rl.settings import Settings, own_fields, sections, shown
from ollm_rl.settings.base import plain_type

# Doors by the title of their page; those of rooms that only the toolkit itself uses have none.
ROOMS = {
    "ollm_rl": "ollm_rl",
    "ollm_rl.options": "Options",
    "ollm_rl.backbones": "Backbones",
    "ollm_rl.problems": "Problems",
    "ollm_rl.answers": "Answers",
    "ollm_rl.metrics": "Metrics",
    "ollm_rl.decode": "Decoding",
    "ollm_rl.pretrain": "Supervised stage",
    "ollm_rl.pretrain.teacher_forced": "Teacher-forced evaluation",
    "ollm_rl.envs": "Environments",
    "ollm_rl.agents": "Agents",
    "ollm_rl.agents.policies": "Policies",
    "ollm_rl.agents.training": "Training",
    "ollm_rl.agents.workers": "Workers",
    "ollm_rl.agents.search": "Search",
    "ollm_rl.agents.evaluation": "Evaluation",
    "ollm_rl.report": "Report",
    "ollm_rl.experiments": "Experiments",
}
_SIGNS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path", dict: "mapping"}


def public_names(room: str) -> list[str]:
    """The names that a room's door exports."""
    return sorted(import_module(room).__all__, key=str.lower)


def api_pages() -> dict[str, str]:
    """Markdown by the page's path: a page per room, with what mkdocstrings reads in the code."""
    pages = {}
    for room, title in ROOMS.items():
        names = "\n\n".join(f"::: {room}.{name}" for name in public_names(room))
        about = (inspect.getdoc(import_module(room)) or "").splitlines()[0]
        pages[f"api/{room}.md"] = f"# {title}: `{room}`\n\n{about}\n\n{names}\n"
    return pages


def settings_page() -> str:
    """Markdown with every flag of every command, made from the dataclasses that the commands read."""
    parts = [
        "# Settings\n",
        "Every flag of every command. The same names stand in YAML files (`--config FILE.yaml`) and in the "
        "dataclasses of Python. A setting without a default must be given.\n",
    ]
    for name, command in COMMANDS.items():
        parts.append(f"## ollm-rl {name}\n\n{command.help}. In Python: `{command.config.replace(':', '.')}`.\n")
        for section in sections(resolve_name(command.config)):
            parts.extend(_list(section, ""))
    return "\n".join(parts)


def notebook_page(notebook: Path) -> str:
    """Markdown of a notebook without outputs: its texts, and its code as code."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    return "\n\n".join(f"```python\n{text}\n```" if kind == "code" else text for kind, text in texts) + "\n"


def _list(section: type[Settings], prefix: str) -> Iterator[str]:
    """A section's settings, and those of the settings nested in it."""
    nested, lines = [], []
    for field, hint, description in described(section):
        kind = plain_type(hint)
        name = f"{prefix}{field.name}"
        if isinstance(kind, type) and issubclass(kind, Settings):
            nested.append((kind, f"{name}."))
        else:
            lines.append(f"- **`--{name}`** ({_values(hint)}; {_default(field)}) - {' '.join(description.split())}")
    if lines:
        title = (inspect.getdoc(section) or "").splitlines()[0].rstrip(".")
        yield "\n".join([f"### {title}\n", *lines, ""])
    for kind, deeper in nested:
        for part in sections(kind):
            yield from _list(part, deeper)


def described(section: type[Settings]) -> Iterator[tuple[Field[Any], Any, str]]:
    """Fields that a section declares itself, with their types and descriptions."""
    descriptions = {param.arg_name: param.description or "" for param in parse_from_object(section).params}
    hints = get_type_hints(section, include_extras=True)
    for field in own_fields(section):
        yield field, hints[field.name], descriptions.get(field.name, "")


def _values(hint: Any) -> str:
    """What a setting may be, in words."""
    kind = plain_type(hint)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) is list:
        return "list of: " + _values(get_args(kind)[0])
    words = _KINDS[get_origin(kind) or kind]
    bounds = [
        f"{_SIGNS[key]} {bound:,}"
        for item in _bounds(hint)
        for key, bound in asdict(item).items()
        if bound is not None and not abs(bound) >= 10**6  # which only refuses slips
    ]
    return f"{words}, {' and '.join(bounds)}" if bounds else words


def _bounds(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Annotated:
        return hint.__metadata__
    inner = [_bounds(part) for part in get_args(hint) if get_origin(part) is Annotated]
    return inner[0] if inner else ()


def _default(field: Field[Any]) -> str:
    if callable(field.default_factory):
        value = field.default_factory()
    elif field.default is MISSING:
        return "required"
    else:
        value = field.default
    if value is None or value == {}:
        return "none by default"
    if isinstance(value, bool):
        return f"default `{str(value).lower()}`"
    items = value if isinstance(value, list) else [value]
    return "default " + " ".join(f"`{item if isinstance(item, str | Path) else shown(item)}`" for item in items)
