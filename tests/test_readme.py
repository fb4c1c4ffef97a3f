"""What README and docs show works: the commands run or parse, the Python runs, the links lead somewhere."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest

from ollm_rl.cli import COMMANDS, main, parse
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.ending import sft_ending
from ollm_rl.settings import refuse_unknown_flags
from tests.places import ROOT

README, QUICKSTART = (ROOT / name for name in ("README.md", "docs/quickstart.md"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TESTED_APART = {"docs/guides/agent.md"}  # by tests/test_users.py
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
SMALLER = {
    "sft": "--max_steps 4 --batch_size 8 --limit 64",
    "train": "--iterations 1 --episodes 16 --num_slots 16 --max_new_tokens 12",
    "eval": "--limit 8 --max_new_tokens 12",
    "report": "",
}


def fenced(text: str, language: str) -> list[str]:
    """The code blocks of a language; an empty one means none is named."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [code for name, code in blocks if name == language]


def commands(text: str) -> list[str]:
    """What follows ``ollm-rl`` in code blocks, without the comments."""
    lines = "\n".join(fenced(text, "")).splitlines()
    return [line.removeprefix("ollm-rl ").partition(" #")[0] for line in lines if line.startswith("ollm-rl ")]


WITH_PYTHON = {page for page, text in TEXTS.items() if fenced(text, "python")}


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of somebody who ran the commands of README and quickstart, in smaller numbers."""
    folder = tmp_path_factory.mktemp("followed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("experiments").symlink_to(ROOT / "experiments")
        stages = [command for command in commands(README.read_text()) if command.split()[0] in SMALLER]
        assert [command.split()[0] for command in stages] == ["sft", "train", "eval", "report"]
        more = [command for command in commands(QUICKSTART.read_text()) if "/vocabulary" in command]
        assert [command.split()[0] for command in more] == ["train", "eval", "report"]
        for command in stages[:2] + more:
            words = shlex.split(command)
            assert main([*words, *SMALLER[words[0]].split()]) == 0
    yield folder


@pytest.mark.parametrize("page", sorted(WITH_PYTHON - TESTED_APART))
def test_the_python_of_a_page_runs(page: str, followed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(followed)
    names: dict[str, object] = {}
    for code in fenced(TEXTS[page], "python"):
        exec(code, names)


def test_a_finished_stage_says_a_next_command_that_works(followed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(followed)
    line = sft_ending(Path("runs/options"), SFTConfig(out=Path("runs/options")))
    result, _, rest = line.partition("; ")
    assert re.fullmatch(r"loss \d+\.\d{3} after \d+ steps", result)
    assert rest == "written to runs/options; next: ollm-rl train --model runs/options --out runs/policy"
    assert parse(line.partition("next: ollm-rl ")[2].split())[0] == "train"


def test_the_commands_of_all_pages_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = {command for text in TEXTS.values() for command in commands(text)}
    assert {command.split()[0] for command in shown} >= {"sft", "train", "eval", "report", "compare", "sweep", "search"}
    examples = {f"{name} {command.example}" for name, command in COMMANDS.items()}
    for command in sorted(examples | shown - {"--version"}):
        name, _ = parse(shlex.split(command))
        assert name == command.split()[0]


def test_commands_within_sentences_have_flags_that_exist() -> None:
    prose = "\n".join(re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL) for text in TEXTS.values())
    quoted = re.findall(r"`ollm-rl ([^`]+)`", prose)
    assert len(quoted) > 30
    for words in map(str.split, quoted):
        if words[0] in COMMANDS:
            refuse_unknown_flags(resolve_name(COMMANDS[words[0]].config), words[1:])
        else:
            assert words[0] == "--help"


def test_links_files_and_modules_that_pages_name_exist() -> None:
    missing = []
    for page, text in TEXTS.items():
        code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", code)
        missing += [f"{page}: {link}" for link in links if not (ROOT / page).parent.joinpath(link).exists()]
        modules = re.findall(r"python -m (ollm_rl[\w.]+)", text)
        modules = [name for name in modules if not name.endswith("NAME")]
        missing += [f"{page}: {name}" for name in modules if importlib.util.find_spec(name) is None]
    assert not missing
    makefile = (ROOT / "Makefile").read_text()
    targets = {target for text in TEXTS.values() for target in re.findall(r"^make ([\w-]+)", text, re.MULTILINE)}
    assert {"docs", "test"} <= targets
    for target in targets:
        assert f"\n{target}:" in makefile
