"""Random settings never give a traceback, nor a run that ends well with numbers that are not finite."""

import dataclasses
import json
import math
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ollm_rl.agents.config import RewardConfig
from ollm_rl.cli import COMMANDS, main, parse
from ollm_rl.errors import UsageError
from ollm_rl.options.config import OptionConfig
from ollm_rl.runs import last_checkpoint
from ollm_rl.settings import Settings

STEADY = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), max_examples=300
)
CONFIGS = {name: resolve_name(command.config) for name, command in COMMANDS.items()}
ALL = [*CONFIGS.values(), OptionConfig, RewardConfig]
# Settings without a default.
REQUIRED: dict[str, Any] = {"out": "x", "prompt": "a", "run": "x", "runs": ["x"], "methods": {"a": {}}, "baseline": "a"}

ODD = st.sampled_from(
    [math.nan, math.inf, -math.inf, 1e39, 1e-320, -1, 0, 1, 2, 10**12, 10**400, True, None, 1j, "", "x", "nan", "1e400"]
    + ["null", "true", "3", "options", "a\0", "\ud800", b"x", Path("x"), np.int64(3), np.float32(math.nan), np.nan]
)
VALUES = st.recursive(
    ODD | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=4,
)


def working(config: type[Settings]) -> dict[str, Any]:
    """The smallest settings that a config accepts."""
    given = {field.name for field in dataclasses.fields(config) if field.default is field.default_factory}
    model = {"model": ["m"] if config is CONFIGS["eval"] else "m"}
    return {name: value for name, value in {**REQUIRED, **model}.items() if name in given}


def names(config: type[Settings]) -> st.SearchStrategy[str]:
    return st.sampled_from([field.name for field in dataclasses.fields(config)])


def one_line(error: UsageError) -> bool:
    return "\n" not in str(error).strip() and len(str(error)) < 2000


def finite(value: Any) -> bool:
    """Whether all numbers are finite; free mappings of a sweep are read when its runs are planned."""
    if isinstance(value, Settings):
        return all(finite(part) for part in vars(value).values())
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@STEADY
@given(draws=st.data())
def test_python_refuses_or_gives_finite_settings(draws: st.DataObject) -> None:
    config = draws.draw(st.sampled_from(ALL))
    values = working(config) | draws.draw(st.dictionaries(names(config), VALUES, max_size=3))
    try:
        made = config(**values)
    except UsageError as error:
        assert one_line(error)
        return
    assert finite(made)
    if config not in (CONFIGS["sweep"], CONFIGS["compare"]):
        assert config(**json.loads(json.dumps(dataclasses.asdict(made), default=str))) == made


@STEADY
@given(draws=st.data())
def test_flags_are_refused_or_give_finite_settings(draws: st.DataObject) -> None:
    command = draws.draw(st.sampled_from(list(CONFIGS)))
    flags = draws.draw(st.lists(st.tuples(names(CONFIGS[command]) | st.text(max_size=4), VALUES), max_size=3))
    try:
        name, made = parse([command, *(f"--{flag}={value}" for flag, value in flags if flag not in ("h", "help"))])
    except UsageError as error:
        assert one_line(error)
        return
    assert name == command and finite(made)


@STEADY
@given(draws=st.data())
def test_files_are_refused_or_give_finite_settings(
    draws: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    command = draws.draw(st.sampled_from(list(CONFIGS)))
    content = draws.draw(st.dictionaries(names(CONFIGS[command]), VALUES, max_size=3) | VALUES)
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(yaml.dump(content, Dumper=yaml.Dumper), encoding="utf-8", errors="surrogatepass")
    try:
        name, made = parse([command, f"--config={path}"])
    except UsageError as error:
        assert one_line(error)
        return
    assert name == command and finite(made)


def extremes(**bounds: list[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in bounds.items()})


SHARED = extremes(
    learning_rate=[1e-38, 1.0, 1e10, 1e30, 3e38], max_grad_norm=[1e-38, 1.0, 3e38], ent_coef=[1e-30, 1000.0],
    kl_coef=[1e-30, 1000.0], epochs=[1, 2], failure_reward=[-1.0, 1.0], keep_checkpoints=[10**9],
)  # fmt: skip
ALGORITHMS = extremes(baseline=["none", "mean", "leave-one-out"], ratio=["topr"], replay=[2]) | extremes(
    algorithm=["ppo"], clip_range=[1e-30, 10.0], gamma=[0.0], gae_lambda=[0.0, 1.0], vf_coef=[0.0, 1000.0]
)
POLICIES = extremes(policy=["anchored"]) | extremes(option_gradient=["option"]) | st.just({"action_space": "tokens"})
REWARDS = extremes(**{f"rewards.{term}": [-1000.0, 1e-30, 1000.0] for term in ("format", "length", "repetition")})


@settings(STEADY, max_examples=8)
@given(shared=SHARED, algorithm=ALGORITHMS, policy=POLICIES, rewards=REWARDS)
def test_a_run_ends_well_only_with_finite_numbers(
    shared: dict[str, Any],
    algorithm: dict[str, Any],
    policy: dict[str, Any],
    rewards: dict[str, Any],
    world: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    out = tmp_path_factory.mktemp("fuzz") / "run"
    given = {**shared, **algorithm, **policy, **rewards}
    small = "--model options --data jsonl:data.jsonl --iterations 1 --episodes 8 --group_size 4 --max_new_tokens 3"
    code = main(["train", f"--out={out}", *small.split(), "--device=cpu", *(f"--{n}={v}" for n, v in given.items())])
    assert code in (0, 1, 2)
    if (path := last_checkpoint(out)) is not None:
        weights = torch.load(path, weights_only=True)["policy"]
        assert all(bool(weight.isfinite().all()) for weight in weights.values())
        rows = json.loads((out / "metrics.json").read_text())
        assert all(math.isfinite(value) for row in rows for value in row.values())
    assert code != 0 or path is not None
