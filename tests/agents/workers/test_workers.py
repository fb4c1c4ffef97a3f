"""Ray workers: equal seeds give equal runs whatever dies on the way; errors within a worker come back once."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

import ollm_rl.agents.workers.ray_workers as ray_workers
from ollm_rl.agents.completions import read_completions
from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.loading import new_policy
from ollm_rl.agents.training.checkpoints import last_checkpoint
from ollm_rl.agents.training.trainer import train
from ollm_rl.agents.workers import cluster
from ollm_rl.agents.workers.local import RolloutWorker, WorkerError
from ollm_rl.agents.workers.ray_workers import Failure, RolloutActor, _Seat, build_worker
from ollm_rl.cli import main
from ollm_rl.decode.rollout import Rollout
from ollm_rl.decode.turns import Action
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.sources import Problem
from tests.places import ROOT
from tests.tiny_models import EOS, VOCAB, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An option model, as a user has it, of which every option writes a digit, a letter, a space or the end."""
    folder = tmp_path_factory.mktemp("workers")
    torch.manual_seed(0)
    backbone = tiny_model("llama")
    written = [EOS, *tiny_tokenizer()("123 ab").input_ids]
    with torch.no_grad():
        backbone.lm_head.weight[[token for token in range(VOCAB) if token not in written]] = 0
    backbone.save_pretrained(folder / "backbone")
    tiny_tokenizer().save_pretrained(folder / "backbone")
    model = OptionModel.from_backbone(str(folder / "backbone"), OptionConfig(num_options=4, width=8))
    with torch.no_grad():
        model.adapter.decoder_out.weight *= 4  # so that the options differ
    model.save_pretrained(folder / "options")
    rows = [{"question": f"Give {word}?", "answer": digit} for word, digit in zip("abcdefg", "1231231", strict=True)]
    (folder / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def config(folder: Path, name: str, **changes: Any) -> RLConfig:
    settings: dict[str, Any] = {
        "out": folder / name,
        "model": str(folder / "options"),
        "data": f"jsonl:{folder / 'problems.jsonl'}",
        "iterations": 4,
        "episodes": 32,
        "group_size": 4,
        "max_new_tokens": 4,
        "num_slots": 8,
        "minibatches": 2,
        "learning_rate": 1e-2,
        "workers": 2,
        "seed": 3,
        "device": "cpu",
    }
    return RLConfig(**settings | changes)


def flags(settings: RLConfig) -> list[str]:
    """Settings for the command line."""
    names = ("out", "model", "data", "max_new_tokens", "episodes", "group_size", "workers", "device")
    return [word for name in names for word in (f"--{name}", str(getattr(settings, name)))]


def curve(out: Path) -> list[dict[str, float]]:
    """All metrics but those that a clock gave, and but the workers lost."""
    rows = json.loads((out / "metrics.json").read_text())
    return [
        {name: value for name, value in row.items() if not name.startswith("seconds") and name != "worker_restarts"}
        for row in rows
    ]


def metric(out: Path, name: str) -> list[float]:
    return [row[name] for row in json.loads((out / "metrics.json").read_text())]


def assert_equal_runs(one: Path, other: Path) -> None:
    """Bit for bit, and every episode counted once."""
    assert curve(one) == curve(other)
    first, second = (torch.load(str(last_checkpoint(out)), weights_only=True)["policy"] for out in (one, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    rows = read_completions(one)
    assert rows == read_completions(other)
    assert [row["iteration"] for row in rows] == [iteration for iteration in range(4) for _ in range(32)]


@pytest.fixture(scope="module")
def undisturbed(folder: Path, local_ray: None) -> Path:
    out = train(config(folder, "undisturbed"))
    rewards = metric(out, "reward")
    assert min(rewards) > 0 and max(rewards) < 1 and len(set(rewards)) > 1  # or equal curves would mean nothing
    assert metric(out, "worker_restarts") == metric(out, "staleness") == [0] * 4
    assert all(seconds > 0 for seconds in metric(out, "seconds_communication"))
    return out


def build_dying(settings: RLConfig, problems: list[Problem], prompts: list[list[int]], episodes: int) -> RolloutWorker:
    """The second worker's first process dies in the middle of its second rollout, as by kill -9."""
    worker = build_worker(settings, problems, prompts, episodes)
    whole_act, whole_collect = worker.policy.act, worker.collect
    dying, turns = False, 0

    def act(hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Action:
        nonlocal turns
        turns += dying
        if turns == 6:
            (settings.out / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return whole_act(hidden_states, uniforms)

    def collect(iteration: int, rows: range) -> Any:
        nonlocal dying
        dying = iteration == 1 and rows.start > 0 and not (settings.out / "died").exists()
        return whole_collect(iteration, rows)

    worker.policy.act = act  # type: ignore[method-assign,assignment]
    worker.collect = collect  # type: ignore[method-assign,assignment]
    return worker


def test_a_run_that_loses_a_worker_in_the_middle_of_a_rollout_ends_as_an_undisturbed_one(
    folder: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "build_worker", build_dying)
    with pytest.warns(RuntimeWarning, match="worker 1 was lost .ActorDiedError: .*; another takes its place"):
        out = train(config(folder, "dying"))
    assert (out / "died").exists()
    assert metric(out, "worker_restarts") == [0, 1, 0, 0]
    assert_equal_runs(out, undisturbed)


KILLED = """
import os, signal
import psutil
from ollm_rl.agents.training.trainer import train
from ollm_rl.agents.training.update import Updater
from tests.agents.workers.test_workers import Path, config

whole_step, steps = Updater.step, 0

def step(self, *arguments):
    global steps
    steps += 1
    if steps == 4:  # the second of two in the second iteration
        processes = psutil.Process().children(recursive=True)
        print(*(process.pid for process in processes if "::Rollout" in process.name()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return whole_step(self, *arguments)

Updater.step = step
train(config(Path({folder!r}), "killed"))
"""


@pytest.mark.slow
def test_a_learner_killed_in_the_middle_of_an_iteration_ends_as_an_undisturbed_one_and_leaves_no_worker(
    folder: Path, undisturbed: Path
) -> None:
    code = KILLED.format(folder=str(folder))
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    workers = list(map(int, killed.stdout.split()))
    assert len(workers) == 2
    left = [psutil.Process(pid) for pid in workers if psutil.pid_exists(pid)]
    assert not psutil.wait_procs(left, timeout=60)[1]
    settings = config(folder, "killed")
    assert metric(settings.out, "episodes") == [32]
    train(settings)
    assert_equal_runs(settings.out, undisturbed)


def test_rollouts_ahead_of_the_learner_are_no_older_than_asked_for(folder: Path, local_ray: None) -> None:
    settings = config(folder, "ahead", async_staleness=2, workers=1, iterations=5)
    out = train(settings)
    # The first three iterations are asked for before any update.
    assert metric(out, "staleness") == [0, 1, 2, 2, 2]
    assert metric(out, "episodes") == [32, 64, 96, 128, 160]


def build_broken(*arguments: Any) -> RolloutWorker:
    worker = build_worker(*arguments)

    def collect(iteration: int, rows: range) -> Any:
        raise KeyError("verdict")

    worker.collect = collect  # type: ignore[method-assign,assignment]
    return worker


def test_an_exception_within_a_worker_is_told_once_with_its_traceback(
    folder: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_workers, "build_worker", build_broken)
    with pytest.raises(SystemExit) as stopped:
        main(["train", *flags(config(folder, "broken", workers=1))])
    text = str(stopped.value)
    assert text.startswith("ollm-rl: worker 0 failed in iteration 0: KeyError: 'verdict'\n")
    assert text.count("Traceback (most recent call last)") == 1
    assert 'raise KeyError("verdict")' in text
    assert "Traceback" not in "".join(capsys.readouterr())


class Recorder:
    """A worker's actor that keeps what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.collect = self  # Ray's way to call it is actor.collect.remote(...)

    def remote(self, weights: str, iteration: int, episodes: range) -> str:
        self.asked.append((weights, iteration))
        return f"result {iteration}"


def test_a_worker_out_of_memory_is_replaced_and_the_next_one_asked_for_all_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spent: list[Failure] = []
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        ValueError("wrong"),
    ):

        def build(*_: object, error: Exception = error) -> RolloutWorker:
            raise error

        outcome = RolloutActor(build, (), 1, "/nowhere").collect({}, 0, range(1))
        assert isinstance(outcome, Failure)
        spent.append(outcome)
    assert [failure.out_of_memory for failure in spent] == [True, True, True, False]

    actors: list[Recorder] = []

    def start() -> Recorder:
        actors.append(Recorder())
        return actors[-1]

    seat = _Seat(0, range(4), start)
    seat.ask(5, 5, "old")  # type: ignore[arg-type]
    seat.ask(6, 5, "old")  # type: ignore[arg-type]
    seat.ask(7, 6, "new")  # type: ignore[arg-type]
    killed: list[Recorder] = []
    monkeypatch.setattr(ray, "kill", killed.append)
    monkeypatch.setattr(ray, "get", lambda result: spent[0])
    with pytest.warns(RuntimeWarning, match=r"worker 0 was lost \(MemoryError\); another takes its place"):
        assert seat.take() is None
    assert killed == actors[:1]
    assert actors[1].asked == [("old", 5), ("old", 6), ("new", 7)]
    monkeypatch.setattr(ray, "get", lambda result: spent[3])
    with pytest.raises(WorkerError, match="worker 0 failed in iteration 5: ValueError: wrong"):
        seat.take()


def build_hanging(*arguments: Any) -> RolloutWorker:
    os.kill(os.getpid(), signal.SIGSTOP)
    raise AssertionError


def test_workers_that_hang_are_replaced_a_few_times_and_then_named(
    folder: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "build_worker", build_hanging)
    message = (
        "worker 0 was lost 5 times in a row over episodes 0 to 31 of iteration 0; "
        "the last time: no answer within worker_timeout=1 seconds"
    )
    with pytest.warns(RuntimeWarning, match="no answer within"), pytest.raises(WorkerError, match=message):
        train(config(folder, "hanging", workers=1, worker_timeout=1.0))


def test_what_a_worker_writes_depends_on_its_episodes_alone(folder: Path) -> None:
    settings = config(folder, "apart", workers=0)
    policy, tokenizer = new_policy(settings, torch.device("cpu"))
    problems = [Problem(id=word, question=word, solution="", answer="1", language="en") for word in "abc"]
    prompts = [tiny_tokenizer()(word).input_ids for word in "abc"]
    worker = RolloutWorker(settings, policy, tokenizer, problems, prompts, 32)
    whole = worker.collect(2, range(32))
    parts = [worker.collect(2, rows) for rows in (range(8), range(8, 32))]
    joined = Rollout.join([part.rollout for part in parts])
    assert joined.prompts == whole.rollout.prompts
    mask = whole.rollout.completion_mask
    assert torch.equal(joined.completion_mask, mask)
    assert torch.equal(joined.tokens[mask], whole.rollout.tokens[mask])
    torch.testing.assert_close(joined.log_probs[mask], whole.rollout.log_probs[mask])
    assert [row.text for part in parts for row in part.checked] == [row.text for row in whole.checked]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 3}, "workers=3 need a processor core each, and Ray has 2"),
        ({"gpus_per_worker": 0.5}, "workers=2 with gpus_per_worker=0.5 do not fit into the 0 GPUs that Ray has"),
    ],
)
def test_resources_that_are_not_there_are_refused_before_a_run_begins(
    folder: Path, local_ray: None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(config(folder, "impossible", **changes))
    assert not (folder / "impossible").exists()


def test_a_worker_has_its_share_of_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 2.0})
    cluster.check_resources(4, 0.5)
    cluster.check_resources(4, 0.4)  # a third 0.4 of a GPU does not fit beside two
    for workers, share in ((5, 0.5), (5, 0.4), (3, 1.0)):
        with pytest.raises(ValueError, match="do not fit into the 2 GPUs"):
            cluster.check_resources(workers, share)


def test_an_address_without_a_ray_cluster_is_refused_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "PATIENCE", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as other:  # listens, but is no Ray
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"no Ray cluster answers at ray_address='{taken}'; start one by"):
            cluster.connect(taken)
    settings = config(folder, "nowhere")
    for address in (taken, "nonsense"):  # nobody listens there now
        assert main(["train", *flags(settings), "--ray_address", address]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ollm-rl:")]
        assert f"no Ray cluster answers at ray_address='{address}'" in line
    assert not settings.out.exists()


def test_a_cluster_is_accepted_by_its_address_and_token(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    address = ray.get_runtime_context().gcs_address
    cluster._check_address(address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another cluster")
    monkeypatch.setattr(cluster, "PATIENCE", 8.0)
    with pytest.raises(ValueError, match=f"the Ray cluster at ray_address='{address}' wants another token"):
        cluster._check_address(address)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 9}, "workers=9 must be between 0 and the 8 groups"),
        ({"gpus_per_worker": 2.0}, "gpus_per_worker=2.0 must be between 0 and 1"),
        ({"workers": 0, "async_staleness": 1}, "async_staleness=1 must be 0, or positive with workers"),
        ({"worker_timeout": 0.0}, "worker_timeout=0.0 must be positive"),
    ],
)
def test_a_setting_of_workers_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, "run", **changes)
