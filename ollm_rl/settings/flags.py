"""Flags and YAML files of settings, generated from the dataclasses.

The parser only collects values, most of them as text; ``read_settings`` reads and checks them.
"""

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from docstring_parser import parse_from_object
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter

from ollm_rl.errors import MissingError, UsageError, one_line
from ollm_rl.settings.base import (
    Settings,
    checked,
    from_text,
    is_required,
    own_fields,
    plain_type,
    refuse_unknown,
    sections,
    shown,
)

_NO_DEFAULT = re.compile(r" \(default: (null|\[\]|\{\})\)$")
NOT_SETTINGS = ("help", "config", "print_config")  # flags of every command


class Help(DefaultHelpFormatter):
    """Help text without Python types, and without defaults that only say that there is none."""

    def _get_type_str(self, action: Any) -> None:
        return None

    def _expand_help(self, action: Any) -> str:
        return _NO_DEFAULT.sub("", super()._expand_help(action)).replace("(default: False)", "(default: false)")


class SettingsFile(ActionConfigFile):
    """The flag ``--config``. The file is checked before jsonargparse reads it, so that an error names it."""

    settings: type[Settings]

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Read the file.

        Raises:
            UsageError: As `check_file`.
        """
        check_file(Path(values), self.settings)
        super().__call__(parser, cfg, values, option_string)


def settings_parser(
    config: type[Settings], description: str, *, prog: str, epilog: str | None = None, positional: bool = False
) -> ArgumentParser:
    """A parser of a command's settings, with one group of flags per section.

    Args:
        config: Class of the settings.
        prog: How the command is called, for its help.
        description: What the command does.
        epilog: The last line of its help.
        positional: Whether settings without a default are positional arguments.
    """
    required = [field.name for field in fields(config) if is_required(field)]
    words = [name.upper() if positional else f"--{name} {name.upper()}" for name in required]
    parser = ArgumentParser(
        prog=prog,
        usage=" ".join(["%(prog)s", *words, "[--SETTING VALUE ...]"]),
        description=description,
        epilog=epilog,
        formatter_class=Help,
        exit_on_error=False,
        allow_abbrev=False,
    )
    for section in sections(config):
        _add_flags(parser, section, "", positional=positional)
    action = type("SettingsFileOfCommand", (SettingsFile,), {"settings": config})
    parser.add_argument("--config", action=action, help="YAML file of settings; flags after it override it.")
    return parser


def refuse_unknown_flags(config: type[Settings], arguments: Sequence[str]) -> None:
    """Refuse flags that a command does not have.

    Raises:
        UsageError: If one is unknown; the message suggests the nearest.
    """
    known = [*NOT_SETTINGS, *_flag_names(config, "")]
    hints = get_type_hints(config, include_extras=True)
    mappings = tuple(f"{name}." for name, hint in hints.items() if get_origin(plain_type(hint)) is dict)
    given = [text[2:].partition("=")[0] for text in arguments if text.startswith("--") and len(text) > 2]
    refuse_unknown([name for name in given if not name.startswith(mappings)], known, prefix="--")


def check_file(path: Path, config: type[Settings]) -> None:
    """Refuse a YAML file that does not hold settings.

    Args:
        path: The file.
        config: Class of the settings.

    Raises:
        MissingError: If there is no such file.
        UsageError: If it cannot be read, is not YAML, or a setting in it is unknown or invalid; the message names the
            file.
    """
    if not path.is_file():
        raise MissingError(f"config={str(path)!r} does not exist, or is no file; give a YAML file of settings")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); give a YAML file"
        ) from error
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply; give a YAML file of settings") from error
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise UsageError(f"{path} is not valid YAML ({one_line(error)}); correct it") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds {shown(content)}, no settings; write lines such as 'seed: 1'")
    hints = get_type_hints(config, include_extras=True)
    try:
        refuse_unknown(content, hints)
        for name, value in content.items():
            checked(name, from_text(value, hints[name]), hints[name])
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


@cache
def _descriptions(section: type) -> dict[str, str | None]:
    """The strings below a section's fields."""
    return {param.arg_name: param.description for param in parse_from_object(section).params}


def _flag_names(config: type[Settings], prefix: str) -> Iterator[str]:
    for name, hint in get_type_hints(config).items():
        kind = plain_type(hint)
        if isinstance(kind, type) and issubclass(kind, Settings):
            yield from _flag_names(kind, f"{name}.")
        else:
            yield prefix + name


def _add_flags(parser: ArgumentParser, section: type[Settings], prefix: str, *, positional: bool) -> None:
    """Add a group of flags for the fields of a section. Nested settings get their own groups."""
    group = parser.add_argument_group((inspect.getdoc(section) or "").splitlines()[0].rstrip("."))
    hints = {name: plain_type(hint) for name, hint in get_type_hints(section).items()}
    descriptions = _descriptions(section)  # type: ignore[arg-type]  # mypy confuses a class's hash with its instances'
    for field in own_fields(section):
        name, kind = f"{prefix}{field.name}", hints[field.name]
        if isinstance(kind, type) and issubclass(kind, Settings):
            for part in sections(kind):
                _add_flags(parser, part, f"{name}.", positional=False)
            continue
        options: dict[str, Any] = {"help": descriptions[field.name]}
        if get_origin(kind) is dict:
            options["type"] = dict  # also given in parts, such as --train.model
        elif get_origin(kind) is list:
            options["nargs"] = "+"
        elif kind is bool or get_origin(kind) is Literal:
            choices = ("true", "false") if kind is bool else get_args(kind)
            options["metavar"] = f"{{{','.join(choices)}}}"
        if callable(field.default_factory):
            options["default"] = field.default_factory()
        elif field.default is not MISSING:
            # Text, since YAML has no paths for --print_config.
            options["default"] = str(field.default) if isinstance(field.default, Path) else field.default
        elif positional:
            group.add_argument(name, **options)
            continue
        else:
            options["required"] = True
        group.add_argument(f"--{name}", **options)
