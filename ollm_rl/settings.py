"""Settings: dataclasses that validate themselves, built from sections that commands share.

A section is a dataclass of fields that belong together. A command's settings inherit from their sections. So Python,
flags and YAML files share one flat set of names, and ``--help`` shows one group per section.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval

from ollm_rl.errors import UsageError

Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
Seed = Annotated[int, Interval(ge=0, lt=2**32)]

# By the bound's name in annotated_types: its description, and a function that checks a value.
_BOUNDS = {
    "ge": ("at least", lambda value, bound: value >= bound),
    "gt": ("more than", lambda value, bound: value > bound),
    "le": ("at most", lambda value, bound: value <= bound),
    "lt": ("less than", lambda value, bound: value < bound),
}
_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", Path: "a path"}


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
    """cpu, cuda, or auto: cuda if available."""


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
            shown = "" if isinstance(value, Settings) else f"={value}"
            raise UsageError(f"{name}{shown} is not used {reason}; leave it out")


def plain_type(hint: Any) -> Any:
    """A field's type without its bounds."""
    kind, parameters = get_origin(hint), tuple(plain_type(parameter) for parameter in get_args(hint))
    if kind is Annotated:
        return parameters[0]
    if kind in (Union, UnionType):
        return Union[parameters]  # noqa: UP007  # a tuple of types
    return list[parameters[0]] if kind is list else hint  # type: ignore[valid-type]


def checked(name: str, value: Any, hint: Any) -> Any:
    """The validated value of a setting; text becomes a path and a dictionary becomes settings where the type says so.

    Raises:
        UsageError: If the value has the wrong type or is not within its bounds.
    """
    kind, parameters = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        if value is None and NoneType in parameters:
            return None
        return checked(name, value, next(parameter for parameter in parameters if parameter is not NoneType))
    if kind is Annotated:
        _check_bounds(name, checked(name, value, parameters[0]), hint.__metadata__)
        return value
    if kind is Literal:
        if not isinstance(value, str) or value not in parameters:
            raise UsageError(f"{name}={value!r} is unknown; give one of {', '.join(parameters)}")
        return value
    if kind is list:
        if not isinstance(value, list):
            raise UsageError(f"{name}={value!r} must be a list, such as {[value]}")
        return [checked(name, item, parameters[0]) for item in value]
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, dict) and issubclass(kind, Settings):  # as loaded from JSON
        return kind(**value)
    if not _has_type(value, kind):
        raise UsageError(f"{name}={value!r} is not {_WORDS.get(kind, f'a {kind.__name__}')}; give one")
    return value


def _has_type(value: Any, kind: type) -> bool:
    if kind in (int, float):
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    return isinstance(value, kind)


def _check_bounds(name: str, value: float, metadata: tuple[Any, ...]) -> None:
    bounds = {key: bound for item in metadata for key, bound in dataclasses.asdict(item).items() if bound is not None}
    if not all(_BOUNDS[key][1](value, bound) for key, bound in bounds.items()):
        required = " and ".join(f"{_BOUNDS[key][0]} {bound:g}" for key, bound in bounds.items())
        raise UsageError(f"{name}={value} must be {required}")
