"""The command line, ``ollm-rl``.

Flags and YAML settings are generated from the dataclasses. The code of a command is imported only when it runs.
"""

import argparse
import difflib
import logging
import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pkgutil import resolve_name
from typing import Any, NamedTuple, NoReturn, TextIO

import ollm_rl
from ollm_rl.errors import RunError, RunWarning, UsageError, machine_fault, one_line
from ollm_rl.processes import check_launcher, lost_others, rank, speaks_for_machine
from ollm_rl.safekeeping.signals import STOPPED, end_at_ctrl_c
from ollm_rl.settings.base import read_settings, shown
from ollm_rl.settings.flags import refuse_unknown_flags, settings_parser

DESCRIPTION = "Latent-space reinforcement learning for language models."


class Command(NamedTuple):
    """One command; ``config``, ``run``, ``ending`` and ``show`` are names of the form ``module:object``.

    Attributes:
        help: What the command does.
        config: Class of its settings.
        run: Function that takes the settings.
        ending: Function that takes the result of ``run`` and the settings and returns the last line to print.
        example: Its words in an example, after its name.
        resumes: What the same command does after Ctrl-C.
        show: Function that formats the result of ``run`` for printing before that line. None if there is no table.
        positional: Whether settings without a default are positional arguments.
    """

    help: str
    config: str
    run: str
    ending: str
    example: str
    resumes: str = "nothing was saved; the same command starts again"
    show: str | None = None
    positional: bool = False


TRIALS_RESUME = "the same command keeps finished runs and resumes the others after their last finished iteration"
COMMANDS = {
    "demo": Command(
        "Run the whole pipeline on the embedded default and write a report",
        "ollm_rl.experiments.config:DemoConfig",
        "ollm_rl.experiments.demo:run_demo",
        "ollm_rl.experiments.ending:demo_ending",
        "--episodes 512",
        "the same command resumes from the last checkpoint of the stage that was running",
    ),
    "sft": Command(
        "Fine-tune options, or a backbone, on worked solutions",
        "ollm_rl.pretrain.config:SFTConfig",
        "ollm_rl.pretrain.sft:run_sft",
        "ollm_rl.pretrain.ending:sft_ending",
        "--data jsonl:train.jsonl --out runs/options",
        "the same command resumes from the last checkpoint, or starts again if there is none yet",
    ),
    "train": Command(
        "Train a policy over options or over tokens by reinforcement learning",
        "ollm_rl.agents.config:RLConfig",
        "ollm_rl.agents.training.run:train_agent",
        "ollm_rl.agents.training.run:train_ending",
        "--model runs/options --out runs/anchored",
        "the same command resumes after the last finished iteration, or starts again if there is none yet",
    ),
    "sweep": Command(
        "Train over a grid of settings, random draws and seeds, and compare them",
        "ollm_rl.experiments.config:SweepConfig",
        "ollm_rl.experiments.sweep:run_sweep",
        "ollm_rl.experiments.ending:sweep_ending",
        "--config experiments/presets/tiny_arith_sweep.yaml --out runs/sweep",
        TRIALS_RESUME,
    ),
    "compare": Command(
        "Tune several methods alike, run them on fresh seeds, and compare how fast they learn",
        "ollm_rl.experiments.config:CompareConfig",
        "ollm_rl.experiments.compare:run_compare",
        "ollm_rl.experiments.ending:compare_ending",
        "--config experiments/presets/tiny_arith_compare.yaml --out runs/compare",
        TRIALS_RESUME,
    ),
    "eval": Command(
        "Measure accuracy, language switching and degeneracy",
        "ollm_rl.agents.evaluation.config:EvalConfig",
        "ollm_rl.agents.evaluation.free_running:run_eval",
        "ollm_rl.agents.evaluation.ending:eval_ending",
        "--model runs/options runs/anchored --out runs/eval",
        "with --out the same command resumes after the problems already evaluated; without, it starts again",
        show="ollm_rl.agents.evaluation.results:format_results",
    ),
    "teacher-forced": Command(
        "Compare backbone, LoRA and options along given solutions, token by token",
        "ollm_rl.pretrain.config:TeacherForcedConfig",
        "ollm_rl.pretrain.teacher_forced.run:run_teacher_forced",
        "ollm_rl.pretrain.ending:teacher_forced_ending",
        "--model runs/options --out forced.json",
        show="ollm_rl.pretrain.teacher_forced.token_report:format_scores",
    ),
    "search": Command(
        "Search for answers over options or tokens at a budget of generated tokens",
        "ollm_rl.agents.search.config:SearchConfig",
        "ollm_rl.agents.search.run:run_search",
        "ollm_rl.agents.search.run:search_ending",
        "--model runs/options --method beam --budget_tokens 384",
        show="ollm_rl.agents.search.run:format_search",
    ),
    "report": Command(
        "Write a page that compares training runs, with an option explorer",
        "ollm_rl.agents.evaluation.config:ReportConfig",
        "ollm_rl.agents.evaluation.reporting:run_report",
        "ollm_rl.agents.evaluation.ending:report_ending",
        "runs/anchored runs/vocabulary --out report.html",
        positional=True,
    ),
    "explore": Command(
        "Write a page with the options at every token of one prompt's completion",
        "ollm_rl.agents.evaluation.config:ExploreConfig",
        "ollm_rl.agents.evaluation.reporting:run_explore",
        "ollm_rl.agents.evaluation.ending:explore_ending",
        "--model runs/anchored --prompt 'What is 2 + 3?'",
    ),
    "audit": Command(
        "Check a run's completions again and look for signs of reward hacking",
        "ollm_rl.agents.evaluation.config:AuditConfig",
        "ollm_rl.agents.evaluation.audit:run_audit",
        "ollm_rl.agents.evaluation.ending:audit_ending",
        "runs/anchored --out audit.json",
        show="ollm_rl.agents.evaluation.audit:format_audit",
        positional=True,
    ),
}


def parse(arguments: list[str] | None = None) -> tuple[str, Any]:
    """The command's name and its settings.

    Raises:
        UsageError: If a command, a flag, a file of settings or a value does not fit.
    """
    name, *flags = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("-h", "--help", "--version"):
        _print_overview(name)
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}? One" if close else "give one"
        raise UsageError(f"{shown(name)} is no command; {hint} of {', '.join(COMMANDS)}")
    entry = COMMANDS[name]
    config = resolve_name(entry.config)
    refuse_unknown_flags(config, flags)
    example = f"example: ollm-rl {name} {entry.example}"
    parser = settings_parser(
        config, f"{entry.help}.", prog=f"ollm-rl {name}", epilog=example, positional=entry.positional
    )
    try:
        values = parser.parse_args(flags).as_dict()
    except ArgumentError as error:
        raise UsageError(f"{one_line(error)}; see ollm-rl {name} --help") from error
    values.pop("config", None)
    return name, read_settings(config, values)


def _print_overview(flag: str) -> NoReturn:
    """Print the version, or all commands with what they do, and exit."""
    parser = argparse.ArgumentParser(prog="ollm-rl", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"ollm-rl {ollm_rl.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, entry in COMMANDS.items():
        commands.add_parser(name, help=entry.help)
    parser.parse_args([flag])
    raise AssertionError("argparse exits")


def run(command: str, settings: Any) -> str:
    """Run one command and return the text to print at the end."""
    entry = COMMANDS[command]
    with end_at_ctrl_c():
        function = resolve_name(entry.run)
        ending: Callable[[Any, Any], str] = resolve_name(entry.ending)
        show: Callable[[Any], str] | None = resolve_name(entry.show) if entry.show else None
    result = function(settings)
    return "\n".join([*([show(result)] if show else []), ending(result, settings)])


class _Lines(logging.Handler):
    """Prints messages as lines above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(one_line(record.getMessage()), file=sys.stderr)


@contextmanager
def own_words() -> Iterator[None]:
    """Within this context our warnings are printed as single lines, and those of other packages are not.

    Somebody who sets PYTHONWARNINGS, or a package's variable of verbosity, sees what it says.
    """
    for package in ("TRANSFORMERS", "HF_HUB", "DATASETS"):
        os.environ.setdefault(f"{package}_VERBOSITY", "error")
    logger, lines = logging.getLogger("ollm_rl"), _Lines()
    logger.addHandler(lines)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, RunWarning):
            logger.warning("%s", message)
        elif sys.warnoptions:
            foreign(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        foreign, warnings.showwarning = warnings.showwarning, show
        try:
            yield
        finally:
            logger.removeHandler(lines)


def main(arguments: list[str] | None = None) -> int:
    """Entry point.

    Returns:
        0 on success; 2 for a user's mistake, 1 if a run cannot continue or the machine lacks memory, disk or a
        permission, each printed as one line; 130 after Ctrl-C. A bug of ollm-rl keeps its traceback.
    """
    command = ""
    try:
        with end_at_ctrl_c():
            command, settings = parse(arguments)
        check_launcher(command)
        with own_words():
            text = run(command, settings)
            if rank() == 0:
                print(text)
    except UsageError as error:
        if os.environ.get("OLLM_RL_TRACEBACK"):
            raise
        if speaks_for_machine():
            print(f"ollm-rl: {one_line(error)}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"ollm-rl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        said = f"; {COMMANDS[command].resumes}" if command else " before anything was done"
        if rank() == 0:
            print(f"ollm-rl: stopped{said}", file=sys.stderr)
        return STOPPED
    except Exception as error:
        if (fault := machine_fault(error) or lost_others(error)) is not None:
            print(f"ollm-rl: {fault}", file=sys.stderr)
            return 1
        print("ollm-rl: this is a bug; please report it with the lines below", file=sys.stderr)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
