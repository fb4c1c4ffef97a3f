"""The command line, ``ollm-rl``.

Flags and YAML grow from the settings' dataclasses; each command is imported when it runs.
"""

import os
import sys
from typing import Any

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
        command.add_class_arguments(config, as_positional=name == "audit")
        commands.add_subcommand(name, command, help=text)
    return parser


def _commands() -> dict[str, tuple[type, str]]:
    """Every command's settings and what it does."""
    from ollm_rl.agents.config import AuditConfig, EvalConfig, RLConfig, SearchConfig
    from ollm_rl.experiments.config import DemoConfig, SweepConfig
    from ollm_rl.pretrain.config import SFTConfig

    return {
        "demo": (DemoConfig, "Run the whole pipeline on the embedded default and write a report"),
        "sft": (SFTConfig, "Fine-tune options, or a backbone, on worked solutions"),
        "train": (RLConfig, "Train a policy over options or over tokens by reinforcement learning"),
        "sweep": (SweepConfig, "Train over a grid of settings, random draws and seeds, and compare them"),
        "eval": (EvalConfig, "Measure accuracy, language switching and degeneracy"),
        "search": (SearchConfig, "Search for answers over options or tokens at a budget of generated tokens"),
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
        from ollm_rl.agents.run import train_agent
        from ollm_rl.agents.worker import WorkerError

        try:
            return f"written to {train_agent(settings)}"
        except WorkerError as error:  # it carries the traceback that matters
            raise SystemExit(f"ollm-rl: {error}") from None
    if command == "sweep":
        from ollm_rl.experiments.sweep import run_sweep

        return f"report: {run_sweep(settings)}"
    if command == "audit":
        from ollm_rl.agents.audit import format_audit, run_audit

        return format_audit(run_audit(settings))
    if command == "search":
        from ollm_rl.agents.search import format_search, run_search

        return format_search(run_search(settings))
    if settings.mode == "teacher-forced":
        from ollm_rl.pretrain.teacher_forced import run_teacher_forced
        from ollm_rl.pretrain.token_report import format_scores

        names = ("model", "lora", "out", "data", "split", "limit", "dtype", "device", "seed")
        return format_scores(run_teacher_forced(**{name: getattr(settings, name) for name in names}))
    from ollm_rl.agents.evaluate import run_eval

    result = run_eval(settings)
    return (
        f"accuracy {result['accuracy']:.3f} [{result['low']:.3f}, {result['high']:.3f}] on {result['num_problems']} "
        f"problems, language switching {result['language_switching_rate']:.3f}, "
        f"degeneracy {result['degeneracy_rate']:.3f}, {result['completion_tokens']:.1f} tokens a completion"
    )


def main(arguments: list[str] | None = None) -> int:
    """Entry point: 0 when all went well, 2 for a user's mistake (one line), 130 after Ctrl-C."""
    parser = build_parser()
    try:
        parsed = parser.parse_args(arguments)
        config_class, _ = _commands()[parsed.command]
        chosen = parser.instantiate(parsed)[parsed.command].as_dict()
        chosen.pop("config", None)
        print(run(parsed.command, config_class(**chosen)))
    except (ArgumentError, ValueError, TypeError, FileNotFoundError) as error:
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
