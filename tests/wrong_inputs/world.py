"""A folder with working models, data and a training run, and with files that are wrong in all kinds of ways."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import torch

from ollm_rl.agents.training.trainer import train
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from tests.tiny_models import save_backbone
from tests.training_runs import config

ROW = '{"question": "Give a?", "answer": "1"}'
ANSWERS = ("111", "112", "111", "211", "111", "121", "111")
SWEEP = """
train: {model: options, data: "jsonl:data.jsonl", iterations: 1, episodes: 8, group_size: 4, max_new_tokens: 3}
"""
COMPARE = """
methods: {a: {random: {learning_rate: {loguniform: [0.001, 0.01]}}}, b: {train: {action_space: tokens}}}
train: {model: options, data: "jsonl:data.jsonl", episodes: 8, group_size: 4, max_new_tokens: 3}
baseline: a
eval_data: "jsonl:data.jsonl"
max_episodes: 16
window: 8
"""
TEXTS: dict[str, str | bytes] = {
    "sweep.yaml": SWEEP,
    "compare.yaml": COMPARE,
    "file": "x",
    "folder/file": "x",
    # Settings
    "open.yaml": "seed: [1,\n",
    "tabs.yaml": "seed: 1\n\tlimit: 2\n",
    "list.yaml": "- a\n- b\n",
    "scalar.yaml": "hello",
    "number.yaml": "3",
    "empty.yaml": "",
    "latin.yaml": "backbone: é\n".encode("latin-1"),
    "binary.yaml": bytes(range(256)),
    "gzip.yaml": gzip.compress(b"seed: 1\n"),
    "nul.yaml": b"seed: \x00",
    "code.yaml": "seed: !!python/object/apply:os.getpid []\n",
    "anchor.yaml": "seed: *one\n",
    "deep.yaml": "seed: " + "[" * 1500,
    "two.yaml": "seed: 1\n---\nseed: 2\n",
    "bomb.yaml": "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghi")),
    "unknown.yaml": "learning: 1\n",
    "keys.yaml": "1: 2\n",
    "date.yaml": "max_steps: 2020-01-01\n",
    "nan.yaml": "learning_rate: .nan\n",
    "inf.yaml": "learning_rate: .inf\n",
    "null.yaml": "max_steps: null\n",
    "truth.yaml": "max_steps: true\n",
    "listed.yaml": "max_steps: [1]\n",
    "mapped.yaml": "max_steps: {a: 1}\n",
    "huge.yaml": f"max_steps: 0x{'f' * 5000}\n",
    "nested.yaml": "options: {nope: 1}\n",
    "flat.yaml": "options: 3\n",
    "rewards.yaml": "rewards: {correctness: .nan}\n",
    "reward_list.yaml": "rewards: [1]\n",
    "reward_term.yaml": "rewards: {speed: 1}\n",
    "mine.py": "def f(prompts, completions, **columns): return [0.0] * len(completions)\n",
    "one_model.yaml": "model: options\n",
    "grid.yaml": "grid: 3\n",
    # Data
    "empty.jsonl": "",
    "text.jsonl": "hello\n",
    "pretty.jsonl": json.dumps([{"question": "a", "answer": "1"}], indent=1),
    "array.jsonl": "[1, 2]\n",
    "number.jsonl": "7\n",
    "latin.jsonl": '{"question": "é", "answer": "1"}'.encode("latin-1"),
    "utf16.jsonl": ROW.encode("utf-16"),
    "gzip.jsonl": gzip.compress(ROW.encode()),
    "binary.jsonl": bytes(range(256)),
    "zeros.jsonl": bytes(100),
    "nan.jsonl": '{"question": "a", "answer": NaN}',
    "infinite.jsonl": '{"question": "a", "answer": 1e999}',
    "digits.jsonl": '{"question": "a", "answer": ' + "1" * 5000 + "}",
    "deep.jsonl": '{"question": "a", "answer": ' + "[" * 10**5 + "]" * 10**5 + "}",
    "open.jsonl": "[" * 10**5,
    "nested.jsonl": '{"question": {"a": 1}, "answer": "1"}',
    "null.jsonl": '{"question": null, "answer": "1"}',
    "truth.jsonl": '{"question": true, "answer": "1"}',
    "blank.jsonl": '{"question": "  ", "answer": "1"}',
    "unanswered.jsonl": '{"question": "a"}',
    "third.jsonl": f"{ROW}\n{ROW}\nx\n",
    "unsolved.jsonl": ROW,
    "long.jsonl": json.dumps({"question": "a" * 100, "solution": "1", "answer": "1"}),
    # Models
    "untyped/config.json": "{}",
    "vision/config.json": '{"model_type": "vit"}',
    "broken/config.json": "{",
    "ia3/adapter_config.json": '{"peft_type": "IA3", "base_model_name_or_path": "backbone"}',
    "lora/adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "backbone"}',
    "unfinished/run.json": '{"kind": "sft", "config": {}}',
}


def make_world() -> None:
    """Fill the working folder."""
    torch.manual_seed(0)
    options = OptionModel.from_backbone(save_backbone(Path("backbone")), OptionConfig(num_options=4, width=8))
    options.save_pretrained("options")
    rows = [
        {"id": word, "question": f"Give {word}?", "solution": "#### 111", "answer": answer}
        for word, answer in zip("abcdefg", ANSWERS, strict=True)
    ]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train(config(Path("run"), Path("options"), "jsonl:data.jsonl", iterations=1))
    for name, content in TEXTS.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
