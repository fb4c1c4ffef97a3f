"""The command line, ``ollm-rl``.

Flags and YAML grow from the settings' dataclasses; each command is imported when it runs.
"""

import dataclasses
import os
import sys
from typing import Any, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from ollm_rl import __version__


def build_parser() -> ArgumentParser:
    """All commands; imports the settings alone."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="ollm-rl", description="Latent-space reinforcement learning for language models.", exit_on_error=False
    )
    parser.add_argument("--version", action="version", version=f"ollm-rl {__version__}")
    commands = parser.add_subcommands(dest="command")
    for name, (config, text) in _commands().items():
        command = ArgumentParser(description=f"{text}.")
        command.add_argument("--config", action="config", help="YAML file of settings; flags after it override it.")
        _add_settings(command, config, positional=name in ("audit", "report"))
        commands.add_subcommand(name, command, help=text)
    return parser


def _add_settings(command: ArgumentParser, config: type, *, positional: bool) -> None:
    """Flags of a dataclass's fields. A list takes several values after its flag, which jsonargparse's own do not."""
    hints, texts = get_type_hints(config), {text.arg_name: text for text in parse_from_object(config).params}
    lists = {field.name: field for field in dataclasses.fields(config) if get_origin(hints[field.name]) is list}
    command.add_class_arguments(config, as_positional=positional, skip=set(lists))
    for name, field in lists.items():
        options: dict[str, Any] = {"nargs": "+", "help": texts[name].description}
        (kind,) = get_args(hints[name])
        if kind is not str:  # of YAML's strings jsonargparse would take each letter
            options["type"] = kind
        required = field.default_factory is dataclasses.MISSING
        if callable(field.default_factory):
            options["default"] = field.default_factory()
        if required and positional:
            command.add_argument(name, **options)
        else:
            command.add_argument(f"--{name}", required=required, **options)


def _commands() -> dict[str, tuple[type, str]]:
    """Every command's settings and what it does."""
    from ollm_rl.agents.config import AuditConfig, EvalConfig, ExploreConfig, ReportConfig, RLConfig, SearchConfig
    from ollm_rl.experiments.config import DemoConfig, SweepConfig
    from ollm_rl.pretrain.config import SFTConfig

    return {
        "demo": (DemoConfig, "Run the whole pipeline on the embedded default and write a report"),
        "sft": (SFTConfig, "Fine-tune options, or a backbone, on worked solutions"),
        "train": (RLConfig, "Train a policy over options or over tokens by reinforcement learning"),
        "sweep": (SweepConfig, "Train over a grid of settings, random draws and seeds, and compare them"),
        "eval": (EvalConfig, "Measure accuracy, language switching and degeneracy"),
        "search": (SearchConfig, "Search for answers over options or tokens at a budget of generated tokens"),
        "report": (ReportConfig, "Write a page that compares training runs, with an option explorer"),
        "explore": (ExploreConfig, "Write a page with the options at every token of one prompt's completion"),
        "audit": (AuditConfig, "Check a run's completions once more and look for signs of reward hacking"),
    }


def run(command: str, settings: Any) -> str:
    """Run one command and return its closing line."""
    if command == "demo":
        from ollm_rl.experiments.demo import run_demo

        return f"report: {run_demo(settings)}"
    if command == "sft":
        from ollm_rl.pretrain.sft import run_sft

        return f"written to {run_sft(settings)}"
    if command == "train":
        from ollm_rl.agents.training.run import train_agent
        from ollm_rl.agents.workers.local import WorkerError

        try:
            return f"written to {train_agent(settings)}"
        except WorkerError as error:  # it carries the traceback that matters
            raise SystemExit(f"ollm-rl: {error}") from None
    if command == "sweep":
        from ollm_rl.experiments.sweep import run_sweep

        return f"report: {run_sweep(settings)}"
    if command == "audit":
        from ollm_rl.agents.evaluation.audit import format_audit, run_audit

        return format_audit(run_audit(settings))
    if command == "search":
        from ollm_rl.agents.search.run import format_search, run_search

        return format_search(run_search(settings))
    if command == "report":
        from ollm_rl.agents.evaluation.reporting import run_report

        return f"written to {run_report(settings)}"
    if command == "explore":
        from ollm_rl.agents.evaluation.reporting import run_explore

        return f"written to {run_explore(settings)}"
    if settings.mode == "teacher-forced":
        from ollm_rl.pretrain.teacher_forced.run import run_teacher_forced
        from ollm_rl.pretrain.teacher_forced.token_report import format_scores

        names = ("lora", "out", "split", "limit", "dtype", "device", "seed")
        chosen = {name: getattr(settings, name) for name in names}
        return format_scores(run_teacher_forced(model=settings.model[0], data=settings.data[0], **chosen))
    from ollm_rl.agents.evaluation.free_running import run_eval
    from ollm_rl.agents.evaluation.results import format_results

    return format_results(run_eval(settings))


def main(arguments: list[str] | None = None) -> int:
    """Entry point: 0 when all went well, 2 for a user's mistake (one line), 130 after Ctrl-C."""
    parser = build_parser()
    try:
        parsed = parser.parse_args(arguments)
        config_class, _ = _commands()[parsed.command]
        chosen = parser.instantiate(parsed)[parsed.command].as_dict()
        chosen.pop("config", None)
        print(run(parsed.command, config_class(**chosen)))
    except (ArgumentError, ValueError, TypeError, OSError) as error:
        if os.environ.get("OLLM_RL_TRACEBACK"):
            raise
        print(f"ollm-rl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ollm-rl: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
