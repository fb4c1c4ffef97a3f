"""Where the time of a decoding step goes: the kernels of one rollout (on a CPU torch's operations), longest first.

python -m ollm_rl.experiments.bench.profile_decode --backbone smollm2-135m --slots 512 --context 64 --new-tokens 96

All slots begin with the same prompt and write equally many tokens, so that almost all the time goes into steps.
"""

import argparse
import time

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import collect
from ollm_rl.decode.turns import Turns
from ollm_rl.devices import resolve_device
from ollm_rl.experiments.bench.contenders import wait
from ollm_rl.experiments.bench.decode import BACKBONES, load
from ollm_rl.experiments.script import positive, start
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel


def main() -> None:
    """Print tokens per second and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=BACKBONES, default="smollm2-135m")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--slots", type=positive, default=512)
    parser.add_argument("--context", type=positive, default=64, help="tokens per prompt")
    parser.add_argument("--new-tokens", type=positive, default=96)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rows", type=positive, default=25)
    args = parser.parse_args()
    device = resolve_device(args.device)
    cuda = device.type == "cuda"
    backbone, _ = load(args.backbone, torch.bfloat16 if cuda else torch.float32, device)
    torch.manual_seed(0)
    model = OptionModel(backbone, OptionConfig())
    engine = DecodeEngine(backbone, args.slots, args.context + args.new_tokens, compiled=args.compiled)
    turns = Turns(engine, OptionPolicy(model).act)
    prompts = [np.random.default_rng(0).integers(10, model.vocab_size - 300, args.context).tolist()] * args.slots

    def run() -> float:
        wait(device)
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(0)
        collect(turns, prompts, max_new_tokens=args.new_tokens, end_tokens=[], generator=generator)
        wait(device)
        return time.perf_counter() - started

    print(f"first run, which compiles and records graphs: {run():.1f} s")
    speeds = [args.slots * args.new_tokens / run() for _ in range(3)]
    print(f"tokens per second, prompt included: {', '.join(f'{speed:,.0f}' for speed in speeds)}")
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as recorded:
        run()
    # Milliseconds per step, launches per step, kernel name.
    attribute = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = [
        (getattr(event, attribute) / 1e3 / args.new_tokens, event.count / args.new_tokens, event.key)
        for event in recorded.key_averages()
    ]
    print(f"{sum(row[0] for row in rows):.2f} ms per step of all slots on the device, of which:")
    for milliseconds, count, key in sorted(rows, reverse=True)[: args.rows]:
        print(f"{milliseconds:8.3f} ms {count:7.1f} x {key[:100]}")


if __name__ == "__main__":
    start(main)
