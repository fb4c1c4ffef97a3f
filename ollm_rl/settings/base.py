"""Settings: dataclasses that validate themselves, built from sections that commands share.

A section is a dataclass of fields that belong together. A command's settings inherit from their sections. So Python,
flags and YAML files share one flat set of names, and ``--help`` shows one group per section.
"""

import dataclasses
import difflib
import numbers
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ollm_rl.errors import UsageError

LARGEST = 3.4e38  # of numbers in float32, in which models compute
# By the bound's name in annotated_types: its description, and a function that checks a value.
_BOUNDS = {
    "ge": ("at least", lambda value, bound: value >= bound),
    "gt": ("more than", lambda value, bound: value > bound),
    "le": ("at most", lambda value, bound: value <= bound),
    "lt": ("less than", lambda value, bound: value < bound),
}
_WORDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    dict: "a mapping, such as {name: value}",
}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlist = 20

SettingsT = TypeVar("SettingsT", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings: every field is checked against its type, choices and bounds.

    Raises:
        UsageError: If a field is invalid; the message names the field, its value and what to give.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(self):
            value = checked(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)


@dataclass(frozen=True, kw_only=True)
class Machine(Settings):
    """Device and precision."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the backbone."""
    device: str = "auto"
    """cpu, cuda, cuda:1 and so on, or auto: cuda if available."""


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """Live metrics."""

    report_to: list[Literal["tensorboard", "wandb", "trackio", "mlflow", "none"]] = dataclasses.field(
        default_factory=lambda: ["tensorboard"]
    )
    """Where metrics can be watched: tensorboard, wandb, trackio or mlflow, one or several, or none. Each service needs
    its own package. metrics.json is always written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "none" in self.report_to and len(self.report_to) > 1:
            raise UsageError(f"report_to={self.report_to} names none and others; give one or the other")


@dataclass(frozen=True, kw_only=True)
class PromptSettings(Settings):
    """The prompt."""

    system_prompt: str | None = None
    """System message before every question; needs a chat template that takes one. Give it to all commands alike."""
    prompt_template: str | None = None
    """Plain text with {question}, such as "Question: {question} Answer:", in place of the tokenizer's chat template."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_template is None:
            return
        if self.prompt_template.count("{question}") != 1:
            raise UsageError(f"prompt_template={self.prompt_template!r} must hold {{question}} once")
        if self.system_prompt is not None:
            raise UsageError("system_prompt is not used with prompt_template; write its text into the template")


def sections(config: type[Settings]) -> list[type[Settings]]:
    """The classes that a command's settings get their fields from, in the order of ``--help``."""
    return [part for part in config.__mro__ if issubclass(part, Settings) and part.__annotations__]


def own_fields(section: type[Settings]) -> list[dataclasses.Field[Any]]:
    """The fields that a section declares itself."""
    return [field for field in dataclasses.fields(section) if field.name in section.__annotations__]


def refuse_changed(settings: Settings, names: list[str], reason: str) -> None:
    """Refuse unused settings that differ from their defaults.

    Args:
        settings: The settings.
        names: Fields that are not used.
        reason: Why they are not used; ends the phrase "is not used ...".

    Raises:
        UsageError: If one differs; the message names the first one and its value.
    """
    for field in dataclasses.fields(settings):
        if field.name not in names:
            continue
        name, value = field.name, getattr(settings, field.name)
        if value != (field.default_factory() if callable(field.default_factory) else field.default):
            given = "" if isinstance(value, Settings) else f"={value}"
            raise UsageError(f"{name}{given} is not used {reason}; leave it out")


def expect(config: Any, kind: type[Settings]) -> None:
    """Refuse what is not an object of these settings, such as the path of a run, or a dictionary.

    Raises:
        UsageError: It says how to make one.
    """
    if isinstance(config, kind):
        return
    required = [f"{field.name}=..." for field in dataclasses.fields(kind) if is_required(field)]
    arguments = "**config" if isinstance(config, Mapping) else ", ".join(required)
    raise UsageError(f"config={shown(config)} is no {kind.__name__}; give {kind.__name__}({arguments})")


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return field.default is MISSING and field.default_factory is MISSING


def plain_type(hint: Any) -> Any:
    """A field's type without its bounds, or without None."""
    kind, parameters = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        return plain_type(parameters[0])
    if kind in (Union, UnionType):
        return plain_type(next(parameter for parameter in parameters if parameter is not NoneType))
    return hint


def read_settings(config: type[SettingsT], values: Mapping[str, Any]) -> SettingsT:
    """Settings from the command line or a YAML file, where a number, a path or a list item may be given as text.

    Raises:
        UsageError: If a name is unknown or missing, or a value is invalid.
    """
    hints = get_type_hints(config, include_extras=True)
    refuse_unknown(values, hints)
    for field in dataclasses.fields(config):
        if field.name not in values and is_required(field):
            raise UsageError(f"{field.name} is missing; give it")
    return config(**{name: from_text(value, hints[name]) for name, value in values.items()})


def refuse_unknown(names: Iterable[Any], known: Iterable[str], *, prefix: str = "") -> None:
    """Refuse names that no setting has.

    Args:
        names: Names that were given.
        known: All names that there are.
        prefix: What precedes a name where it is given, such as ``--``.

    Raises:
        UsageError: If one is unknown; the message suggests the nearest.
    """
    known = list(known)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            remedy = f"did you mean {prefix}{close[0]}?" if close else "--help lists all settings"
            raise UsageError(f"{prefix}{shown(name).strip(chr(39))} is no setting here; {remedy}")


def from_text(value: Any, hint: Any) -> Any:
    """The value that a text stands for, if the hint wants no text. What cannot be read is left to ``checked``."""
    kind = plain_type(hint)
    if value == "null" and NoneType in get_args(hint):
        return None
    if get_origin(kind) is list and isinstance(value, list):
        return [from_text(item, get_args(kind)[0]) for item in value]
    if isinstance(value, Mapping) and isinstance(kind, type) and issubclass(kind, Settings):
        return read_settings(kind, value)
    if isinstance(value, str) and kind is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    if isinstance(value, str) and kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            return value
    return value


def checked(name: str, value: Any, hint: Any) -> Any:
    """The validated value of a setting; text becomes a path and a dictionary becomes settings where the type says so.

    Args:
        name: Name of the setting, for the message.
        value: The value.
        hint: Its type, with bounds as ``Annotated``, such as `Count`, or a ``Literal``.

    Raises:
        UsageError: If the value has the wrong type or is not within its bounds.
    """
    kind, parameters = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return value
    if kind in (Union, UnionType):
        if value is None and NoneType in parameters:
            return None
        return checked(name, value, next(parameter for parameter in parameters if parameter is not NoneType))
    if kind is Annotated:
        value = checked(name, value, parameters[0])
        _check_bounds(name, value, hint.__metadata__)
        return value
    if kind is Literal:
        if not isinstance(value, str) or value not in parameters:
            raise UsageError(f"{name}={shown(value)} is unknown; give one of {', '.join(parameters)}")
        return value
    if kind is list and not isinstance(value, list):
        raise UsageError(f"{name}={shown(value)} must be a list, such as [{shown(value)}]")
    if kind is Path and isinstance(value, str):
        value = Path(value) if value else value
    if isinstance(value, dict) and issubclass(kind, Settings):  # as loaded from JSON
        return read_settings(kind, value)
    if kind in (int, float) and isinstance(value, numbers.Real) and not isinstance(value, bool | int | float):
        value = kind(value) if isinstance(value, numbers.Integral) else float(value)  # of numpy, which JSON refuses
    if not _has_type(value, kind):
        raise UsageError(f"{name}={shown(value)} is not {_WORDS.get(kind, f'a {kind.__name__}')}; give one")
    if kind in (str, Path):
        _check_text(name, str(value))
    if kind is list:
        return [checked(name, item, parameters[0]) for item in value]
    if kind is dict:
        return {checked(name, key, str): checked(f"{name}.{key}", item, parameters[1]) for key, item in value.items()}
    return value


def shown(value: Any) -> str:
    """A value as text for a message: one line, shortened if it is long."""
    try:
        return re.sub(r"\s*\n\s*", " ", _SHORT.repr(value))  # a tensor is written on several lines
    except ValueError:  # Python refuses to write whole numbers of more than 4,300 digits
        return "a number of thousands of digits"


def _has_type(value: Any, kind: type) -> bool:
    if kind in (int, float):
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        return is_number and (kind is int or abs(value) <= LARGEST)  # false for NaN too
    return isinstance(value, kind)


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8: one with a lone surrogate, half a character, cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _check_text(name: str, text: str) -> None:
    """Refuse what no file name and no UTF-8 text can hold."""
    if "\0" in text or not is_text(text):
        raise UsageError(f"{name}={shown(text)} holds a character that is no UTF-8 text; leave it out")


def _check_bounds(name: str, value: float, metadata: tuple[Any, ...]) -> None:
    bounds = {key: bound for item in metadata for key, bound in dataclasses.asdict(item).items() if bound is not None}
    if not all(_BOUNDS[key][1](value, bound) for key, bound in bounds.items()):
        required = " and ".join(f"{_BOUNDS[key][0]} {bound:,}" for key, bound in bounds.items())
        raise UsageError(f"{name}={shown(value)} must be {required}")
