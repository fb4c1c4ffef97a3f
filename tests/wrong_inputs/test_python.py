"""Wrong inputs of the Python API: each is a ``UsageError`` of one line that names the value."""

from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch

from ollm_rl.agents.config import RewardConfig, RLConfig
from ollm_rl.agents.evaluation.free_running import evaluate
from ollm_rl.agents.policies.anchored import AnchoredPolicy
from ollm_rl.agents.policies.frozen_head import FrozenHeadPolicy
from ollm_rl.agents.policies.loading import load_policy
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.agents.search.config import SearchConfig, SearchSettings
from ollm_rl.agents.search.run import search
from ollm_rl.agents.training.advantages import episode_advantages
from ollm_rl.agents.training.trainer import train
from ollm_rl.backbones.loading import load_backbone, load_tokenizer
from ollm_rl.backbones.names import resolve
from ollm_rl.cli import COMMANDS
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.turns import Action
from ollm_rl.devices import resolve_device
from ollm_rl.envs.sb3 import TextGenVecEnv
from ollm_rl.envs.text_gen import TextGenEnv
from ollm_rl.envs.vector import TextGenVectorEnv
from ollm_rl.errors import UsageError
from ollm_rl.experiments.config import CompareConfig, SweepConfig
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.prompts import encode_prompts
from ollm_rl.problems.sources import load_problems
from tests.tiny_models import tiny_model, tiny_tokenizer

NAN, INF = float("nan"), float("inf")
PROBLEM = Problem(id="a", question="Give a?", solution="", answer="1", language="en")
Call = Callable[[], object]


@pytest.fixture(scope="module")
def model() -> OptionModel:
    return OptionModel(tiny_model("llama"), OptionConfig(num_options=4, width=8))


def refusal(call: Call) -> str:
    with pytest.raises(UsageError) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"num_envs": 0}, "num_envs=0 must be at least 1"),
        ({"num_envs": True}, "num_envs=True is not a whole number"),
        ({"num_envs": 1.5}, "num_envs=1.5 is not a whole number"),
        ({"num_envs": None}, "num_envs=None is not a whole number"),
        ({"num_envs": 10**12}, "num_envs=1000000000000 must be"),
        ({"model": 3}, "model=3 is not a path"),
        ({"model": None}, "model=None is not a path"),
        ({"model": b"options"}, "model=b'options' is not a path"),
        ({"model": ["options"]}, "model=['options'] is not a path"),
        ({"model": Path("nowhere")}, "nowhere holds no option plug-in"),
        ({"model": "no\0where"}, "holds a character that is no UTF-8 text"),
        ({"problems": []}, "problems is empty"),
        ({"problems": 3}, "problems holds 3"),
        ({"problems": None}, "problems holds None"),
        ({"problems": [1]}, "problems holds 1; give a list of Problem"),
        ({"problems": ["arith"]}, "problems holds 'arith'"),
        ({"problems": "maths"}, "problems='maths' names no source"),
        ({"problems": Path("problems.jsonl")}, "problems=PosixPath('problems.jsonl') is not text"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"max_new_tokens": True}, "max_new_tokens=True is not a whole number"),
        ({"max_new_tokens": 1.5}, "max_new_tokens=1.5 is not a whole number"),
        ({"max_new_tokens": "4"}, "max_new_tokens='4' is not a whole number"),
        ({"max_new_tokens": 1j}, "max_new_tokens=1j is not a whole number"),
        ({"max_new_tokens": NAN}, "max_new_tokens=nan is not a whole number"),
        ({"max_new_tokens": 99}, "no room for 99 more within 64"),
        ({"action_space": "words"}, "action_space='words' is unknown; give one of options, tokens"),
        ({"action_space": ["options"]}, "action_space=['options'] is unknown"),
        ({"observation_mode": None}, "observation_mode=None is unknown; give one of hidden, hidden+text"),
        ({"autoreset_mode": "sometimes"}, "autoreset_mode='sometimes' is unknown; give one of NextStep"),
        ({"autoreset_mode": ["SameStep"]}, "autoreset_mode=['SameStep'] is unknown"),
        ({"render_mode": "human"}, "render_mode='human' is unknown"),
        ({"render_mode": 1}, "render_mode=1 is unknown"),
        ({"tokenizer": "llama"}, "tokenizer='llama' is no tokenizer"),
        ({"compiled": "yes"}, "compiled='yes' is not true or false"),
        ({"compiled": 1}, "compiled=1 is not true or false"),
        ({"reward_weights": None}, "reward_weights=None is no mapping"),
        ({"reward_weights": {}}, "all weights in {} are 0"),
        ({"reward_weights": {"speed": 1}}, "reward term 'speed' is unknown"),
        ({"reward_weights": {"correctness": NAN}}, "the weight of correctness=nan is not a finite number"),
        ({"reward_weights": {"correctness": "1"}}, "the weight of correctness='1' is not a finite number"),
        ({"reward_weights": {"correctness": True}}, "the weight of correctness=True is not a finite number"),
        ({"reward_weights": {"correctness": 1j}}, "the weight of correctness=1j is not a finite number"),
        ({"reward_weights": {"correctness": 1e6}}, "the weight of correctness=1000000.0 must be"),
    ],
)
def test_an_environment_refuses(settings: dict[str, Any], part: str, model: OptionModel) -> None:
    working: dict[str, Any] = {"num_envs": 2, "model": model, "problems": [PROBLEM], "max_new_tokens": 4}
    working["tokenizer"] = tiny_tokenizer()
    assert part in refusal(lambda: TextGenVectorEnv(**working | settings))
    assert TextGenVectorEnv(**working).num_envs == 2
    if settings.keys() <= {"model", "problems", "max_new_tokens", "action_space", "render_mode", "reward_weights"}:
        single = {name: value for name, value in (working | settings).items() if name != "num_envs"}
        assert part in refusal(lambda: TextGenEnv(**single))


@pytest.mark.parametrize("action", [1.5, 1.0, True, 1j, NAN, "a", None, -1, 4, [0], np.float32(1), np.True_])
def test_a_step_refuses_and_the_episode_goes_on(action: Any, model: OptionModel) -> None:
    env = TextGenEnv(model, [PROBLEM], max_new_tokens=2, tokenizer=tiny_tokenizer())
    env.reset(seed=0)
    assert "action" in refusal(lambda: env.step(action))
    assert env.step(np.int64(0))[3] is False  # the first of two tokens


@pytest.mark.parametrize(
    "options",
    [{"problem": 1.0}, {"problem": False}, {"problem": None}, {"problem": [0]}, {"problem": 1j}, {"problem": NAN},
     {"problem": "b"}, {"problem": 1}, {"probelm": 0}, {1: 0}, [0], "problem", 3, {"problem": 0, "seed": 1}],
)  # fmt: skip
def test_a_reset_refuses(options: Any, model: OptionModel) -> None:
    env = TextGenEnv(model, [PROBLEM], max_new_tokens=2, tokenizer=tiny_tokenizer())
    refusal(lambda: env.reset(options=options))


@pytest.mark.parametrize(
    "options",
    [[True, False], "all", {"reset_mask": [True, True]}, {"reset_mask": np.ones(3, bool)}, {"mask": 1},
     {"reset_mask": np.zeros(2, bool)}, {"reset_mask": np.ones(2)}, {"reset_mask": None}],
)  # fmt: skip
def test_a_reset_of_many_refuses(options: Any, model: OptionModel) -> None:
    envs = TextGenVectorEnv(2, model, [PROBLEM], max_new_tokens=2, tokenizer=tiny_tokenizer())
    refusal(lambda: envs.reset(options=options))
    assert "does not suit SB3" in refusal(lambda: TextGenVecEnv(envs))
    assert "give a TextGenVectorEnv" in refusal(lambda: TextGenVecEnv(options))


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: load_problems(None), "problems=None is not text"),  # type: ignore[arg-type]
        (lambda: load_problems(Path("x.jsonl")), "is not text"),  # type: ignore[arg-type]
        (lambda: load_problems("jsonl:a\0b"), "no UTF-8 text"),
        (lambda: load_problems("jsonl:" + "x" * 300), "cannot be read (File name too long)"),
        (lambda: load_problems("arith", limit=True), "limit=True is not a whole number"),
        (lambda: load_problems("arith", limit=1.5), "limit=1.5 is not a whole number"),  # type: ignore[arg-type]
        (lambda: load_problems("arith", limit=10**12), "limit=1000000000000 must be"),
        (lambda: load_problems("arith", seed=-1), "seed=-1 must be at least 0"),
        (lambda: load_problems("arith", seed=None), "seed=None is not a whole number"),  # type: ignore[arg-type]
        (lambda: load_problems("arith", seed=2**40), "seed=1099511627776 must be"),
        (lambda: load_problems("arith", split="all"), "split='all' is unknown"),
        (lambda: load_problems("hf:folder", split=3), "split=3 is not text"),  # type: ignore[arg-type]
        (lambda: encode_prompts("2 + 3?", tiny_tokenizer(), max_length=9), "problems holds '2'"),  # type: ignore
        (lambda: load_backbone(None), "backbone=None is not a path"),  # type: ignore[arg-type]
        (lambda: load_backbone(Path("nowhere")), "backbone 'nowhere' cannot be loaded"),
        (lambda: load_tokenizer(3), "backbone=3 is not a path"),  # type: ignore[arg-type]
        (lambda: OptionModel.from_pretrained(3), "model=3 is not a path"),  # type: ignore[arg-type]
        (lambda: OptionModel.from_backbone(Path("nowhere")), "backbone 'nowhere' cannot be loaded"),
        (lambda: OptionModel("tiny-arith", OptionConfig()), "backbone='tiny-arith' is no language model"),  # type: ignore
        (lambda: OptionPolicy("runs/options"), "model='runs/options' is no option model"),  # type: ignore[arg-type]
        (lambda: AnchoredPolicy({}), "give one, such as OptionModel.from_pretrained returns"),  # type: ignore[arg-type]
        (lambda: TokenPolicy("tiny-arith", rank=2), "backbone='tiny-arith' is no language model"),  # type: ignore[arg-type]
        (lambda: FrozenHeadPolicy("tiny-arith"), "backbone='tiny-arith' is no language model"),  # type: ignore[arg-type]
        (lambda: DecodeEngine("tiny-arith", 2, 9), "give one, such as load_backbone returns"),  # type: ignore[arg-type]
        (lambda: resolve_device("meta"), "device 'meta' is not available"),
        (lambda: resolve_device(None), "device None is not available"),  # type: ignore[arg-type]
        (lambda: resolve(3), "model=3 is not a path"),  # type: ignore[arg-type]
        (lambda: load_policy(""), "model='' is not a path"),
        (lambda: load_policy("tiny-arith", device="meta"), "device 'meta' is not available"),
        (lambda: episode_advantages(torch.zeros(4), 2, "median"), "baseline='median' is unknown"),  # type: ignore
        (lambda: episode_advantages(torch.zeros(4), 3, "group"), "group_size=3 does not divide 4 episodes"),
        (lambda: episode_advantages(torch.zeros(4), 0, "group"), "group_size=0 must be at least 1"),
    ],
)
def test_a_function_refuses(call: Call, part: str) -> None:
    assert part in refusal(call)


@pytest.mark.parametrize(
    ("numbers", "part"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens=1.5 is not a whole number"),
        ({"num_slots": True}, "num_slots=True is not a whole number"),
        ({"num_slots": -1}, "num_slots=-1 must be at least 1"),
        ({"problems": []}, "problems is empty"),
        ({"problems": PROBLEM.question}, "problems holds 'G'; give a list of Problem"),
        ({"problems": [{"question": "1+1?"}]}, "problems holds {'question': '1+1?'}; give a list of Problem"),
        ({"policy": "runs/anchored"}, "policy='runs/anchored' has no method act; give what load_policy returns"),
        (
            {"tokenizer": "tiny-arith"},
            "tokenizer='tiny-arith' is no tokenizer; give one, such as load_tokenizer returns",
        ),
    ],
)
def test_an_evaluation_refuses(numbers: dict[str, Any], part: str, model: OptionModel) -> None:
    policy = TokenPolicy(model.backbone, rank=0)
    working: dict[str, Any] = {"policy": policy, "problems": [PROBLEM], "max_new_tokens": 3, "num_slots": 2}
    working["tokenizer"] = tiny_tokenizer()
    assert part in refusal(lambda: evaluate(**working | numbers))


@pytest.mark.parametrize(
    ("chosen", "part"),
    [
        (lambda logits: logits.argmax(-1), "the policy's act returned tensor("),
        (lambda logits: None, "the policy's act returned None; return an Action"),
        (lambda logits: (logits.argmax(-1), logits), "return an Action, such as Action.of(tokens)"),
        (Action.of, "tokens of shape (1, 97) and type torch.float32 for one row"),
        (lambda logits: Action.of(logits.argmax()), "tokens of shape () and type torch.int64 for one row"),
        (lambda logits: Action.of(logits.max(-1).values), "return one token id per row, such as logits.argmax(-1)"),
    ],
)
def test_an_evaluation_refuses_what_an_own_policy_chooses(
    chosen: Callable[[torch.Tensor], Any], part: str, model: OptionModel
) -> None:
    class Own:
        backbone = model.backbone

        def act(self, hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Any:
            return chosen(model.head(hidden_states))

    assert part in refusal(lambda: evaluate(Own(), tiny_tokenizer(), [PROBLEM], max_new_tokens=3))


TAKES_SETTINGS = {
    **{name: (resolve_name(command.run), resolve_name(command.config)) for name, command in COMMANDS.items()},
    "train of training": (train, RLConfig),
    "OptionModel": (lambda config: OptionModel(tiny_model("llama"), config), OptionConfig),
    "from_backbone": (lambda config: OptionModel.from_backbone(tiny_model("llama"), config), OptionConfig),
    "search of Python": (lambda settings: search(None, None, [PROBLEM], settings), SearchSettings),  # type: ignore
}


@pytest.mark.parametrize("name", TAKES_SETTINGS)
def test_a_path_or_a_dictionary_is_no_settings(name: str) -> None:
    function, config = TAKES_SETTINGS[name]
    assert f"config='runs/options' is no {config.__name__}; give {config.__name__}(" in refusal(
        lambda: function("runs/options")
    )
    settings = {"num_options": 4, "model": "runs/options"}
    assert f"is no {config.__name__}; give {config.__name__}(**config)" in refusal(lambda: function(settings))
    assert f"config={{}} is no {config.__name__}" in refusal(lambda: function({}))


@pytest.mark.parametrize(
    "ids", ["text", ["text"], [[1, 2]], None, 3, torch.tensor([1, 2]), torch.ones(1, 2), tiny_tokenizer()("a")]
)
def test_a_model_reads_only_token_ids(ids: Any, model: OptionModel) -> None:
    for read in (model.hidden_states, model.generate, lambda ids: model.counted_states(ids, ids)):
        message = refusal(lambda read=read: read(ids))  # type: ignore[misc]
        assert "input_ids" in message and "give tokenizer(texts, return_tensors='pt', padding=True)" in message


@pytest.mark.parametrize("size", [(0, 9), (2, 0), (1.5, 9), (True, 9), (2, "x"), (2, 1.5), (2, 65), (10**12, 9)])
def test_an_engine_refuses(size: tuple[Any, Any], model: OptionModel) -> None:
    refusal(lambda: DecodeEngine(model.backbone, *size))
    assert "compiled='no' is not true" in refusal(lambda: DecodeEngine(model.backbone, 2, 9, compiled="no"))  # type: ignore
    assert "backbone=OptionModel(" in refusal(lambda: DecodeEngine(model, 2, 9))  # type: ignore[arg-type]


RL: dict[str, Any] = {"out": "x", "model": "y"}
SWEEP: dict[str, Any] = {"out": "x"}
COMPARE: dict[str, Any] = {"out": "x", "methods": {"a": {}}, "baseline": "a"}


@pytest.mark.parametrize(
    ("config", "settings", "part"),
    [
        (OptionConfig, {"num_options": True}, "num_options=True is not a whole number"),
        (OptionConfig, {"num_options": 4.0}, "num_options=4.0 is not a whole number"),
        (OptionConfig, {"num_options": 10**5000}, "num_options=a number of thousands of digits must be"),
        (OptionConfig, {"kl_target": 1j}, "kl_target=1j is not a finite number"),
        (OptionConfig, {"kl_target": np.float64(NAN)}, "is not a finite number"),
        (OptionConfig, {"estimator": None}, "estimator=None is unknown"),
        (OptionConfig, {"estimator": ["exact"]}, "estimator=['exact'] is unknown"),
        (OptionConfig, {"identity_option": 1}, "identity_option=1 is not true or false"),
        (OptionConfig, {"identity_option": None}, "identity_option=None is not true or false"),
        (RewardConfig, {"correctness": -INF}, "correctness=-inf is not a finite number"),
        (RewardConfig, {"correctness": 10**400}, "is not a finite number"),
        (RLConfig, {**RL, "rewards": {"speed": 1}}, "speed is no setting here"),
        (RLConfig, {**RL, "rewards": {"lenght": 1}}, "did you mean length?"),
        (RLConfig, {**RL, "rewards": None}, "rewards=None is not a RewardConfig"),
        (RLConfig, {**RL, "model": None}, "model=None is not text"),
        (RLConfig, {**RL, "model": "a\ud800"}, "no UTF-8 text"),
        (RLConfig, {**RL, "out": 3}, "out=3 is not a path"),
        (RLConfig, {**RL, "out": ""}, "out='' is not a path"),
        (RLConfig, {**RL, "learning_rate": np.float32(INF)}, "learning_rate=inf is not a finite number"),
        (RLConfig, {**RL, "compiled": np.int64(1)}, "compiled="),
        (SFTConfig, {"out": "x", "options": 3}, "options=3 is not a OptionConfig"),
        (SFTConfig, {"out": "x", "options": {"num_options": 0}}, "num_options=0 must be at least 1"),
        (SFTConfig, {"out": "x", "cache": 3}, "cache=3 is not a path"),
        (SFTConfig, {"out": "x", "limit": 0.5}, "limit=0.5 is not a whole number"),
        (SearchConfig, {"model": "x", "temperature": -1}, "temperature=-1 must be more than 0.001"),
        (SearchConfig, {"model": "x", "method": 1}, "method=1 is unknown"),
        (SweepConfig, {**SWEEP, "seeds": 1}, "seeds=1 must be a list"),
        (SweepConfig, {**SWEEP, "seeds": []}, "seeds=[] must be at least one"),
        (SweepConfig, {**SWEEP, "seeds": [NAN]}, "seeds=nan is not a whole number"),
        (SweepConfig, {**SWEEP, "grid": []}, "grid=[] is not a mapping"),
        (SweepConfig, {**SWEEP, "grid": {1: [1]}}, "grid=1 is not text"),
        (CompareConfig, {**COMPARE, "thresholds": [INF]}, "thresholds=inf is not a finite number"),
        (CompareConfig, {**COMPARE, "methods": {}}, "baseline='a' is no method"),
    ],
)
def test_settings_refuse(config: type, settings: dict[str, Any], part: str) -> None:
    assert part in refusal(lambda: config(**settings))


def test_numbers_of_numpy_become_those_of_python() -> None:
    config = RLConfig(**RL, seed=np.int64(3), learning_rate=np.float32(0.5), ent_coef=np.int32(1))  # type: ignore
    assert [type(value) for value in (config.seed, config.learning_rate, config.ent_coef)] == [int, float, float]
    assert (config.seed, config.learning_rate, config.ent_coef) == (3, 0.5, 1)
