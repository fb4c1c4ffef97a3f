"""What a launcher of several processes may start, and how it is refused what it may not."""

import pytest

from ollm_rl.cli import main
from ollm_rl.processes import lost_others, rank, world_size

LAUNCHED = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
LAUNCHED |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--model", "runs/options"], "ollm-rl eval is one process, and a launcher started 2 (WORLD_SIZE=2)"),
        (["demo"], "start it without torchrun or accelerate launch"),
        (["train", "--model", "x", "--out", "y"], "policy='anchored' learns in one process"),
        (["train", "--model", "x", "--out", "y"], "start ollm-rl train without a launcher and give workers=2"),
        (["train", "--model", "x", "--out", "y", "--agent", "sb3-ppo"], "agent='sb3-ppo' learns in one process"),
        (
            ["train", "--model", "x", "--out", "y", "--action_space", "tokens", "--workers", "2"],
            "workers=2 is not used by 2 processes of a launcher",
        ),
        (
            ["train", "--model", "x", "--out", "y", "--action_space", "tokens", "--episodes", "8"],
            "2 processes are more than the 1 groups of an iteration's episodes; start fewer",
        ),
        (["sft", "--out", "y", "--device", "cuda:1"], "device='cuda:1' is one device, and there are 2 processes"),
    ],
)
def test_what_several_processes_do_not_run_is_refused_by_name(
    two: None, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", "accelerate launch uses FSDP, which is not supported; leave it out"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed_precision='bf16' of accelerate launch is not used"),
    ],
)
def test_what_accelerate_would_add_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert main(["sft", "--out", "unused"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_launcher_that_does_not_say_where_processes_are_is_refused(
    two: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str
) -> None:
    monkeypatch.delenv(variable)
    assert main(["sft", "--out", "unused"]) == 2
    assert f"RANK and WORLD_SIZE=2 are set, but not {variable}; start the processes by torchrun" in (
        capsys.readouterr().err
    )


def test_a_mistake_that_all_processes_find_is_printed_once_per_machine(
    two: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["eval", "--model", "runs/options"]) == 2
    assert capsys.readouterr().err == ""


def test_a_cluster_that_only_counts_its_machines_starts_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("RANK", raising=False)
    assert (world_size(), rank()) == (1, 0)


def test_the_end_of_another_process_is_no_bug(two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("[/torch/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:51724")
    assert str(lost_others(error)).startswith("process 0 lost the others ([/torch/gloo/")
    assert lost_others(RuntimeError("shapes cannot be multiplied")) is None
    monkeypatch.delenv("WORLD_SIZE")
    assert lost_others(error) is None
