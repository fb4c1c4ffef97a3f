"""Ray workers: equal seeds give equal runs whichever process dies, and errors within a worker are raised once."""

import json
import os
import pickle
import signal
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
from ollm_rl.agents.training.trainer import train
from ollm_rl.agents.workers.cluster import _check_address
from ollm_rl.agents.workers.local import Batch, RolloutWorker, WorkerError, episode_shares, packed
from ollm_rl.agents.workers.local import joined as workers_joined
from ollm_rl.agents.workers.ray_workers import Failure, RolloutActor, _Seat, build_worker
from ollm_rl.cli import main
from ollm_rl.decode.rollout import Rollout
from ollm_rl.decode.turns import Action
from ollm_rl.problems.problem import Problem
from ollm_rl.runs import last_checkpoint
from tests.processes import run_process
from tests.tiny_models import tiny_tokenizer
from tests.training_runs import die_at_step


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
    """Settings as command-line flags."""
    names = ("out", "model", "data", "max_new_tokens", "episodes", "group_size", "workers", "device")
    return [word for name in names for word in (f"--{name}", str(getattr(settings, name)))]


def curve(out: Path) -> list[dict[str, float]]:
    """All metrics except times and the number of lost workers."""
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


def in_shares(config: RLConfig, count: int) -> Path:
    """Run in this process, which makes the episodes of one worker after those of another."""

    def collect_iteration(self: RolloutWorker, iteration: int) -> Batch:
        parts = [self.collect(iteration, share) for share in episode_shares(config, count)]
        return workers_joined(list(map(packed, parts)), torch.device("cpu"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RolloutWorker, "collect_iteration", collect_iteration)
        out = train(config)
    rewards = metric(out, "reward")
    assert min(rewards) > 0 and max(rewards) < 1 and len(set(rewards)) > 1  # otherwise equal curves would mean nothing
    return out


def build_dying(settings: RLConfig, problems: list[Problem], prompts: list[list[int]], episodes: int) -> RolloutWorker:
    """The second worker's first process dies in the middle of its second rollout, as by kill -9."""
    worker = build_worker(settings, problems, prompts, episodes)
    whole_act, whole_collect = worker.turns._choose, worker.collect
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

    worker.turns._choose = act
    worker.collect = collect  # type: ignore[method-assign,assignment]
    return worker


def test_a_run_that_loses_a_worker_in_the_middle_of_a_rollout_ends_as_one_in_this_process(
    folder: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "build_worker", build_dying)
    with pytest.warns(RuntimeWarning, match="worker 1 was lost .ActorDiedError: .*; another takes its place"):
        out = train(config(folder, "dying"))
    assert (out / "died").exists()
    assert metric(out, "worker_restarts") == [0, 1, 0, 0]
    assert metric(out, "staleness") == [0] * 4
    assert all(seconds > 0 for seconds in metric(out, "seconds_communication"))
    assert_equal_runs(out, in_shares(config(folder, "shares", workers=0), 2))


def train_until_killed(settings: RLConfig) -> None:
    """Runs in a process of its own, which dies in the second of two steps in the second iteration."""

    def note_workers() -> None:
        processes = psutil.Process().children(recursive=True)
        pids = [process.pid for process in processes if "::Rollout" in process.name()]
        (settings.out / "workers").write_text(json.dumps(pids))

    die_at_step(4, note_workers)
    train(settings)


@pytest.mark.slow
def test_a_learner_killed_in_the_middle_of_an_iteration_ends_as_an_undisturbed_one_and_leaves_no_worker(
    folder: Path, local_ray: None
) -> None:
    settings, log = config(folder, "killed", workers=1), folder / "log"
    assert run_process(log, train_until_killed, settings) == -signal.SIGKILL, log.read_text()
    (worker,) = json.loads((settings.out / "workers").read_text())
    left = [psutil.Process(worker)] if psutil.pid_exists(worker) else []
    assert metric(settings.out, "episodes") == [32]
    train(settings)
    assert_equal_runs(settings.out, in_shares(config(folder, "undisturbed", workers=0), 1))
    assert not psutil.wait_procs(left, timeout=60)[1]


def test_rollouts_ahead_of_the_learner_are_no_older_than_requested(folder: Path, local_ray: None) -> None:
    settings = config(folder, "ahead", async_staleness=2, workers=1, iterations=5)
    out = train(settings)
    # The first three iterations are requested before any update.
    assert metric(out, "staleness") == [0, 1, 2, 2, 2]
    assert metric(out, "episodes") == [32, 64, 96, 128, 160]


def build_broken(*arguments: Any) -> RolloutWorker:
    worker = build_worker(*arguments)

    def collect(iteration: int, rows: range) -> Any:
        raise KeyError("verdict")

    worker.collect = collect  # type: ignore[method-assign,assignment]
    return worker


def test_an_exception_within_a_worker_is_reported_once_with_its_traceback(
    folder: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_workers, "build_worker", build_broken)
    assert main(["train", *flags(config(folder, "broken", workers=1))]) == 1
    text = capsys.readouterr().err
    text = text[text.index("ollm-rl: worker") :]
    assert text.startswith("ollm-rl: worker 0 failed in iteration 0: KeyError: 'verdict'\n")
    assert text.count("Traceback (most recent call last)") == 1
    assert 'raise KeyError("verdict")' in text


class Recorder:
    """Stands in for a worker's actor and records the requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, int]] = []
        self.collect = self  # Ray calls it as actor.collect.remote(...)

    def remote(self, weights: str, iteration: int, episodes: range) -> str:
        self.requests.append((weights, iteration))
        return f"result {iteration}"


def test_a_worker_out_of_memory_is_replaced_and_the_next_one_gets_all_missing_requests(
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
    seat.request(5, 5, "old")  # type: ignore[arg-type]
    seat.request(6, 5, "old")  # type: ignore[arg-type]
    seat.request(7, 6, "new")  # type: ignore[arg-type]
    killed: list[Recorder] = []
    monkeypatch.setattr(ray, "kill", killed.append)
    monkeypatch.setattr(ray, "get", lambda result: spent[0])
    with pytest.warns(RuntimeWarning, match=r"worker 0 was lost \(MemoryError\); another takes its place"):
        assert seat.result() is None
    assert killed == actors[:1]
    assert actors[1].requests == [("old", 5), ("old", 6), ("new", 7)]
    monkeypatch.setattr(ray, "get", lambda result: spent[3])
    with pytest.raises(WorkerError, match="worker 0 failed in iteration 5: ValueError: wrong"):
        seat.result()


def build_hanging(*arguments: Any) -> RolloutWorker:
    os.kill(os.getpid(), signal.SIGSTOP)
    raise AssertionError


def test_workers_that_hang_are_replaced_a_few_times_and_then_reported(
    folder: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "build_worker", build_hanging)
    message = (
        "worker 0 was lost 5 times in a row over episodes 0 to 31 of iteration 0; "
        "the last time: no answer within worker_timeout=0.5 seconds"
    )
    with pytest.warns(RuntimeWarning, match="no answer within"), pytest.raises(WorkerError, match=message):
        train(config(folder, "hanging", workers=1, worker_timeout=0.5))


def test_a_cluster_is_accepted_by_its_address_and_token(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    address = ray.get_runtime_context().gcs_address
    _check_address(address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another cluster")
    with pytest.raises(ValueError, match=f"the Ray cluster at ray_address='{address}' expects another token"):
        _check_address(address)


def test_the_completions_of_a_worker_depend_only_on_its_episodes(folder: Path) -> None:
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
    assert [row.text for part in parts for row in part.completions] == [row.text for row in whole.completions]
    sent = [packed(part) for part in parts]
    decisions = whole.rollout.decisions
    assert 0 < sum(len(part.rollout.stored["hidden_states"]) for part in sent) == int(decisions.sum()) < mask.sum()
    received = workers_joined(sent, torch.device("cpu")).rollout
    assert torch.equal(received.decisions, decisions) and received.prompts == whole.rollout.prompts
    for name, stored in whole.rollout.stored.items():
        torch.testing.assert_close(received.stored[name][decisions], stored[decisions])
        assert not received.stored[name][~decisions].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_tensors_of_a_batch_are_sent_beside_its_pickle_and_arrive_unchanged(dtype: torch.dtype) -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    stored = {"hidden_states": torch.randn(3, 4, 6)[..., ::2].to(dtype), "options": torch.arange(3)}
    rollout = Rollout([[1], [2]], mask * 7, mask, mask, torch.randn(2, 3), torch.randn(2, 3), mask[:, 1], stored, 5)
    sent = Batch(rollout, [], 0.5, staleness=2)
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(sent, protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 8 and len(pickled) < 2000
    received = pickle.loads(pickled, buffers=[memoryview(bytes(buffer)) for buffer in buffers])  # read-only, as of Ray
    assert (received.seconds_verify, received.staleness, received.completions) == (0.5, 2, [])
    expected, found = vars(sent.rollout), vars(received.rollout)
    assert found.keys() == expected.keys() and found["prompts"] == [[1], [2]] and found["slot_steps"] == 5
    for before, after in ((expected, found), (expected["stored"], found["stored"])):
        for name, tensor in before.items():
            if isinstance(tensor, torch.Tensor):
                assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor), name
