"""Files of an SB3 agent: written in SB3's own format, read without executing anything in them.

SB3 keeps most of an agent in ``model.zip`` as pickled objects, and its replay buffer as a pickle. Only
tensors and plain numbers are read of it; everything else of the agent is made from the run's settings.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch

from ollm_rl.errors import DamagedError, MissingError, UsageError, extra, one_line
from ollm_rl.files.records import Entries, read_rows
from ollm_rl.files.tensors import check_tensors, load_tensors, sealed_tensors, sealed_zip
from ollm_rl.runs import METRICS_FILE, write_atomic

with extra("sb3"):
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
    from stable_baselines3.common.save_util import load_from_zip_file

MODEL_FILE, REPLAY_FILE = "model.zip", "replay_buffer.pt"
# SB3's counters: of steps, updates and episodes, the share of training left, and those of DQN.
COUNTERS = (
    "num_timesteps",
    "_n_updates",
    "_episode_num",
    "_n_calls",
    "exploration_rate",
    "_current_progress_remaining",
)
TRANSITIONS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
PROGRESS: Entries = {"episodes": float, "seconds": float, "timesteps": float}  # that a resumed run reads
REMEDY = "train again in another out folder"


def save_agent(agent: BaseAlgorithm, out: Path, history: list[dict[str, float]]) -> None:
    """Write metrics, replay buffer and model, each atomically; the model last, since it records the run's progress."""
    write_atomic(out / METRICS_FILE, json.dumps(history, indent=1))
    if isinstance(agent, OffPolicyAlgorithm):
        write_atomic(out / REPLAY_FILE, sealed_tensors(_replay_state(agent)))
    buffer = io.BytesIO()
    agent.save(buffer)
    write_atomic(out / MODEL_FILE, sealed_zip(buffer.getvalue()))


def saved_history(out: Path) -> list[dict[str, float]]:
    """The rows up to the saved model; the run may have been killed between writing metrics and model.

    Raises:
        DamagedError: If one of the files is damaged.
    """
    if not (out / MODEL_FILE).exists():
        return []
    steps = _counters(out / MODEL_FILE)["num_timesteps"]
    rows = read_rows(out / METRICS_FILE, PROGRESS, remedy=REMEDY)
    return [row for row in rows if row["timesteps"] <= steps]


def load_agent(agent: BaseAlgorithm, out: Path) -> None:
    """Read weights, optimiser, counters and (DQN) replay buffer into a new agent with the run's settings.

    Raises:
        UsageError: If a file is damaged, or does not fit the agent.
    """
    path = out / MODEL_FILE
    for name, value in _counters(path).items():
        if hasattr(agent, name):
            setattr(agent, name, value)
    try:
        _, weights, _ = load_from_zip_file(path, load_data=False, device=agent.device)  # tensors only
        agent.set_parameters(weights, exact_match=True, device=agent.device)
    except Exception as error:  # a forged pickle can raise anything
        raise UsageError(f"{path} does not hold the weights of this agent ({one_line(error)}); {REMEDY}") from error
    if isinstance(agent, OffPolicyAlgorithm):
        _load_replay(agent, out)


def _counters(path: Path) -> dict[str, Any]:
    """The counters in a model file, which are plain numbers in its JSON."""
    try:
        check_tensors(path)
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data").decode())
        found = {name: data[name] for name in COUNTERS if isinstance(data.get(name), int | float)}
        if "num_timesteps" not in found:
            raise ValueError("it has no number of steps")
    except DamagedError as error:
        raise DamagedError(f"{one_line(error)}; {REMEDY}") from error
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read ({one_line(error)}); {REMEDY}") from error
    return found


def _replay_state(agent: OffPolicyAlgorithm) -> dict[str, Any]:
    """Position and transitions of a replay buffer; rows not yet filled are left out."""
    buffer = _buffer(agent)
    filled = {name: torch.from_numpy(getattr(buffer, name)[: buffer.size()]) for name in TRANSITIONS}
    return {"pos": buffer.pos, "full": buffer.full, **filled}


def _load_replay(agent: OffPolicyAlgorithm, out: Path) -> None:
    path, buffer = out / REPLAY_FILE, _buffer(agent)
    if not path.exists():
        # Also that of older runs, which was a pickle and could execute anything.
        raise MissingError(f"{path} is missing, without which the run cannot resume; {REMEDY}")
    state = load_tensors(path, "pos", "full", *TRANSITIONS)
    try:
        for name in TRANSITIONS:
            getattr(buffer, name)[: len(state[name])] = state[name].numpy()
        buffer.pos, buffer.full = int(state["pos"]), bool(state["full"])
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} does not fit this agent ({one_line(error)}); {REMEDY}") from error


def _buffer(agent: OffPolicyAlgorithm) -> ReplayBuffer:
    assert isinstance(agent.replay_buffer, ReplayBuffer)
    return agent.replay_buffer
