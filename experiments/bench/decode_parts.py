"""Parts of a decoding step, each old against new in one process on a GPU: A B A B, medians.

python -m ollm_rl.experiments.bench.decode_parts [--parts tokens prompts step] [--json parts.json]

``tokens``: the most probable token of every option by the product and its argmax (old), and by the kernel in blocks of
several sizes (new). ``prompts``: compiled passes over prompts with transformers' mask (old) and without (new).
``step``: turns of 512 slots as inductor compiles them by default (old), and with settings that may help small kernels
(new). Models have the widths of SmolLM2-135M and Qwen2.5-1.5B, random weights and few layers. A failure is one line.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, Qwen2Config

from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.row_cache import first_pass
from ollm_rl.decode.step import ModelStep
from ollm_rl.decode.turns import Trajectories, Turns
from ollm_rl.devices import HAS_TRITON, resolve_device
from ollm_rl.errors import one_line
from ollm_rl.experiments.bench.contenders import wait
from ollm_rl.experiments.bench.decode import QWEN_1_5B
from ollm_rl.experiments.script import start
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.runs import write_atomic

if HAS_TRITON:
    from ollm_rl.backbones.head_kernel import Blocks, highest_with

SMOLLM2: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
CONFIGS: dict[str, Any] = {"SmolLM2": LlamaConfig(**SMOLLM2), "Qwen2.5-1.5B": Qwen2Config(**QWEN_1_5B)}
# Backbone, slots; ten options each.
TOKENS = [("SmolLM2", 512), ("SmolLM2", 64), ("Qwen2.5-1.5B", 256)]
# The fields of ``Blocks`` without flatten: states, tokens, inner numbers, warps, stages, programs at a time.
BLOCK_SIZES = [(128, 128, 64, 4, 3, 2), (128, 256, 64, 8, 3, 1), (128, 256, 64, 8, 4, 1), (256, 128, 64, 8, 3, 1)]
# Backbone, layers, prompts, tokens per prompt.
PROMPTS = [("SmolLM2", 6, 260, 63), ("Qwen2.5-1.5B", 4, 16, 1000)]
STEP = ("SmolLM2", 4, 512)  # backbone, layers, slots
ROUNDS, CALLS = 5, 3  # rounds that count, and calls of every part in each
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "pdl": {"triton.enable_pdl": True},
    "combo": {"combo_kernels": True},
    "pdl and combo": {"triton.enable_pdl": True, "combo_kernels": True},
}
Parts = dict[str, Callable[[], object]]


def model_of(name: str, layers: int, device: torch.device) -> Any:
    """A random backbone in bfloat16."""
    torch.manual_seed(0)
    config = CONFIGS[name].__class__(**{**CONFIGS[name].to_dict(), "num_hidden_layers": layers, "layer_types": None})
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval().requires_grad_(False)


def tokens(name: str, slots: int, device: torch.device) -> Parts:
    """Ways to the most probable tokens of ten options."""
    config = CONFIGS[name]
    states = torch.randn(10 * slots, config.hidden_size, device=device, dtype=torch.bfloat16)
    weight = torch.randn(config.vocab_size, config.hidden_size, device=device, dtype=torch.bfloat16)

    def product() -> torch.Tensor:
        return F.linear(states, weight).argmax(-1)

    parts: Parts = {"product": product, "product, compiled": torch.compile(product)}
    for sizes, flatten in itertools.product(BLOCK_SIZES, (False, True)):
        blocks = Blocks(*sizes, flatten)
        parts[f"kernel {blocks}"] = partial(highest_with, blocks, states, weight, None)
    return {key: part for key, part in parts.items() if _agrees(key, part, product())}


def _agrees(key: str, part: Callable[[], object], expected: torch.Tensor) -> bool:
    """Whether a part can be run; prints how often it agrees with the product, whose logits are rounded."""
    try:
        found = part()
    except Exception as error:  # blocks that do not fit this GPU
        print(f"  {key}: {type(error).__name__}: {one_line(error)}")
        return False
    assert isinstance(found, torch.Tensor)
    print(f"  {key}: {float((found == expected).float().mean()):.2%} of the tokens are the product's")
    return True


def prompts(name: str, layers: int, count: int, length: int, device: torch.device) -> Parts:
    """Passes over prompts: not compiled, compiled with a mask, and without."""
    backbone = model_of(name, layers, device)
    ids = torch.randint(10, backbone.config.vocab_size - 300, (count, length), device=device)
    torch._dynamo.reset()
    parts: Parts = {}
    for key, compiled in (("not compiled", False), ("with a mask", True), ("without a mask", True)):
        seen = first_pass(backbone, torch.zeros(1, 1, dtype=torch.long, device=backbone.device))
        step = ModelStep(backbone, 1, length + 8, compiled=compiled, seen=seen)
        step._is_causal = step._is_causal and key == "without a mask"
        parts[key] = partial(_read, step, ids)
    return parts


@torch.no_grad()
def _read(step: ModelStep, ids: torch.Tensor) -> None:
    step.read(ids, past_key_values=DynamicCache(), use_cache=True)


def step(name: str, layers: int, slots: int, device: torch.device) -> Parts:
    """A chunk of turns under each of inductor's settings. Groups of eight slots have one prompt."""
    model = OptionModel(model_of(name, layers, device), OptionConfig())
    ids = torch.randint(10, 40_000, (slots // 8, 63)).tolist()
    parts: Parts = {}
    for key, settings in SETTINGS.items():
        torch._dynamo.reset()
        try:
            with torch._inductor.config.patch(settings):
                engine = DecodeEngine(model.backbone, slots, 512, compiled=True)
                turns = Turns(engine, OptionPolicy(model).act)
                engine.prefill(range(slots), [ids[slot // 8] for slot in range(slots)])
                turns.start([])
                turns.begin(list(range(slots)), list(range(slots)), [400] * slots)
                trajectories = Trajectories(turns.record, slots, 400)
                uniforms = torch.rand(slots + 1, 400, device=device)
                turns.run(uniforms, trajectories)
        except Exception as error:  # a setting that this version of torch does not have, or cannot compile
            print(f"  {key}: {type(error).__name__}: {one_line(error)}")
            continue
        parts[key] = partial(turns.run, uniforms, trajectories)
    return parts


def compare(parts: Parts, device: torch.device) -> dict[str, float]:
    """Milliseconds per call, the median over rounds in which all take turns."""
    seconds: dict[str, list[float]] = {key: [] for key in parts}
    for _ in range(ROUNDS + 1):  # the first warms up
        for key, part in parts.items():
            wait(device)
            started = time.perf_counter()
            for _ in range(CALLS):
                part()
            wait(device)
            seconds[key].append((time.perf_counter() - started) / CALLS)
    return {key: 1e3 * statistics.median(values[1:]) for key, values in seconds.items()}


@contextmanager
def reported(case: str) -> Iterator[None]:
    """Within this context a failure is one line."""
    print(case)
    started = time.perf_counter()
    try:
        yield
    except Exception as error:
        print(f"  {type(error).__name__}: {one_line(error)}")
    print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)
    torch.cuda.empty_cache()


def main() -> None:
    """Print milliseconds case by case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("tokens", "prompts", "step")
    parser.add_argument("--parts", nargs="+", default=names, choices=names)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = resolve_device("cuda")
    cases: dict[str, Callable[[], Parts]] = {}
    if "tokens" in args.parts:
        cases |= {f"tokens, {name}, {slots} slots": partial(tokens, name, slots, device) for name, slots in TOKENS}
    if "prompts" in args.parts:
        cases |= {f"prompts, {case}": partial(prompts, *case, device) for case in PROMPTS}
    if "step" in args.parts:
        cases[f"step: a chunk of turns, {STEP}"] = partial(step, *STEP, device)
    result: dict[str, dict[str, float]] = {}
    for case, make in cases.items():
        with reported(case):
            result[case] = compare(make(), device)
            for key, milliseconds in result[case].items():
                print(f"  {milliseconds:9.3f} ms  {key}")
        if args.json:
            write_atomic(args.json, json.dumps({"machine": torch.cuda.get_device_name(), "cases": result}, indent=1))


if __name__ == "__main__":
    start(main)
