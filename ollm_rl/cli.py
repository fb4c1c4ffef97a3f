"""The command line, ``ollm-rl``.

Flags and YAML settings are generated from the dataclasses. The code of a command is imported only when it runs.
"""

import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import MISSING
from pkgutil import resolve_name
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

from ollm_rl import __version__
from ollm_rl.errors import RunError, UsageError, one_line
from ollm_rl.safekeeping.signals import STOPPED, end_at_ctrl_c
from ollm_rl.settings import Settings, own_fields, plain_type, sections


class Command(NamedTuple):
    """One command; ``config``, ``run`` and ``show`` are names of the form ``module:object``.

    Attributes:
        help: What the command does.
        config: Class of its settings.
        run: Function that takes the settings.
        resumes: What the same command does after Ctrl-C.
        show: Function that formats the result of ``run`` for printing. None if ``run`` returns the path that it wrote.
        positional: Whether settings without a default are positional arguments.
    """

    help: str
    config: str
    run: str
    resumes: str = "nothing was saved; the same command starts again"
    show: str | None = None
    positional: bool = False


TRIALS_RESUME = "the same command keeps finished runs and resumes the others after their last finished iteration"
COMMANDS = {
    "demo": Command(
        "Run the whole pipeline on the embedded default and write a report",
        "ollm_rl.experiments.config:DemoConfig",
        "ollm_rl.experiments.demo:run_demo",
        "the same command resumes from the last checkpoint of the stage that was running",
    ),
    "sft": Command(
        "Fine-tune options, or a backbone, on worked solutions",
        "ollm_rl.pretrain.config:SFTConfig",
        "ollm_rl.pretrain.sft:run_sft",
        "the same command resumes from the last checkpoint, or starts again if there is none yet",
    ),
    "train": Command(
        "Train a policy over options or over tokens by reinforcement learning",
        "ollm_rl.agents.config:RLConfig",
        "ollm_rl.agents.training.run:train_agent",
        "the same command resumes after the last finished iteration, or starts again if there is none yet",
    ),
    "sweep": Command(
        "Train over a grid of settings, random draws and seeds, and compare them",
        "ollm_rl.experiments.config:SweepConfig",
        "ollm_rl.experiments.sweep:run_sweep",
        TRIALS_RESUME,
    ),
    "compare": Command(
        "Tune several methods alike, run them on fresh seeds, and compare how fast they learn",
        "ollm_rl.experiments.config:CompareConfig",
        "ollm_rl.experiments.compare:run_compare",
        TRIALS_RESUME,
    ),
    "eval": Command(
        "Measure accuracy, language switching and degeneracy",
        "ollm_rl.agents.evaluation.config:EvalConfig",
        "ollm_rl.agents.evaluation.free_running:run_eval",
        "with --out the same command resumes after the problems already evaluated; without, it starts again",
        show="ollm_rl.agents.evaluation.results:format_results",
    ),
    "teacher-forced": Command(
        "Compare backbone, LoRA and options along given solutions, token by token",
        "ollm_rl.pretrain.config:TeacherForcedConfig",
        "ollm_rl.pretrain.teacher_forced.run:run_teacher_forced",
        show="ollm_rl.pretrain.teacher_forced.token_report:format_scores",
    ),
    "search": Command(
        "Search for answers over options or tokens at a budget of generated tokens",
        "ollm_rl.agents.search.config:SearchConfig",
        "ollm_rl.agents.search.run:run_search",
        show="ollm_rl.agents.search.run:format_search",
    ),
    "report": Command(
        "Write a page that compares training runs, with an option explorer",
        "ollm_rl.agents.evaluation.config:ReportConfig",
        "ollm_rl.agents.evaluation.reporting:run_report",
        positional=True,
    ),
    "explore": Command(
        "Write a page with the options at every token of one prompt's completion",
        "ollm_rl.agents.evaluation.config:ExploreConfig",
        "ollm_rl.agents.evaluation.reporting:run_explore",
    ),
    "audit": Command(
        "Check a run's completions again and look for signs of reward hacking",
        "ollm_rl.agents.evaluation.config:AuditConfig",
        "ollm_rl.agents.evaluation.audit:run_audit",
        show="ollm_rl.agents.evaluation.audit:format_audit",
        positional=True,
    ),
}


class Help(DefaultHelpFormatter):
    """Help text without Python types."""

    def _get_type_str(self, action: Any) -> None:
        return None


STRICT: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}


def build_parser() -> ArgumentParser:
    """The parser of all commands. It imports only the settings."""
    description = "Latent-space reinforcement learning for language models."
    parser = ArgumentParser(prog="ollm-rl", description=description, formatter_class=Help, **STRICT)
    parser.add_argument("--version", action="version", version=f"ollm-rl {__version__}")
    commands = parser.add_subcommands(dest="command")
    for name, entry in COMMANDS.items():
        command = settings_parser(resolve_name(entry.config), f"{entry.help}.", positional=entry.positional)
        command.add_argument("--config", action="config", help="YAML file of settings; flags after it override it.")
        commands.add_subcommand(name, command, help=entry.help)
    return parser


def settings_parser(config: type[Settings], description: str = "", *, positional: bool = False) -> ArgumentParser:
    """A parser of a command's settings, with one group of flags per section.

    Args:
        config: Class of the settings.
        description: What the command does.
        positional: Whether settings without a default are positional arguments.
    """
    parser = ArgumentParser(description=description, formatter_class=Help, **STRICT)
    for section in sections(config):
        _add_flags(parser, section, "", positional=positional)
    return parser


def _add_flags(parser: ArgumentParser, section: type[Settings], prefix: str, *, positional: bool) -> None:
    """Add a group of flags for the fields of a section. Nested settings get their own groups."""
    group = parser.add_argument_group((inspect.getdoc(section) or "").splitlines()[0].rstrip("."))
    hints = {name: plain_type(hint) for name, hint in get_type_hints(section).items()}
    descriptions = {param.arg_name: param.description for param in parse_from_object(section).params}
    for field in own_fields(section):
        name, kind = f"{prefix}{field.name}", hints[field.name]
        if isinstance(kind, type) and issubclass(kind, Settings):
            for part in sections(kind):
                _add_flags(parser, part, f"{name}.", positional=False)
            continue
        options: dict[str, Any] = {"help": descriptions[field.name], "type": kind}
        if get_origin(kind) is list:
            options |= {"nargs": "+", "type": get_args(kind)[0]}
            if options["type"] is str:  # jsonargparse would split a YAML string into letters
                del options["type"]
        if callable(field.default_factory):
            options["default"] = field.default_factory()
        elif field.default is not MISSING:
            options["default"] = field.default
        elif positional:
            group.add_argument(name, **options)
            continue
        else:
            options["required"] = True
        group.add_argument(f"--{name}", **options)


def parse(arguments: list[str] | None = None) -> tuple[str, Any]:
    """The command's name and its settings.

    Raises:
        UsageError: If a flag or a value does not fit.
        ArgumentError: If jsonargparse rejects the arguments.
    """
    parser = build_parser()
    args = parser.parse_args(arguments)
    values = args[args.command].as_dict()
    values.pop("config", None)
    return args.command, resolve_name(COMMANDS[args.command].config)(**values)


def run(command: str, settings: Any) -> str:
    """Run one command and return the text to print at the end."""
    entry = COMMANDS[command]
    with end_at_ctrl_c():
        function = resolve_name(entry.run)
        show: Callable[[Any], str] = resolve_name(entry.show) if entry.show else "written to {}".format
    return show(function(settings))


def main(arguments: list[str] | None = None) -> int:
    """Entry point.

    Returns:
        0 on success, 1 if a run cannot continue, 2 for a user's mistake (printed as one line), 130 after Ctrl-C. A bug
        of ollm-rl keeps its traceback.
    """
    command = ""
    try:
        with end_at_ctrl_c():
            command, settings = parse(arguments)
        print(run(command, settings))
    except (ArgumentError, UsageError) as error:
        if os.environ.get("OLLM_RL_TRACEBACK"):
            raise
        print(f"ollm-rl: {one_line(error)}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"ollm-rl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        said = f"; {COMMANDS[command].resumes}" if command else " before anything was done"
        print(f"ollm-rl: stopped{said}", file=sys.stderr)
        return STOPPED
    except Exception:
        print("ollm-rl: this is a bug; please report it with the lines below", file=sys.stderr)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
