"""Where the time of decoding goes: the kernels of one rollout on CUDA, the longest first.

python experiments/profile_decode.py --backbone smollm2-135m --slots 512 --context 64 --new-tokens 96
"""

import argparse
import time

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from ollm_rl.agents.policies import OptionPolicy
from ollm_rl.agents.rollout import collect
from ollm_rl.config import OptionConfig
from ollm_rl.engine import DecodeEngine
from ollm_rl.experiments.bench_decode import BACKBONES, load
from ollm_rl.model import OptionModel


def main() -> None:
    """Print tokens a second and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=BACKBONES, default="smollm2-135m")
    parser.add_argument("--slots", type=int, default=512)
    parser.add_argument("--context", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rows", type=int, default=25)
    given = parser.parse_args()
    device = torch.device("cuda")
    backbone, _ = load(given.backbone, torch.bfloat16, device)
    torch.manual_seed(0)
    model = OptionModel(backbone, OptionConfig())
    policy = OptionPolicy(model)
    engine = DecodeEngine(backbone, given.slots, given.context + given.new_tokens, compiled=given.compiled)
    prompts = np.random.default_rng(0).integers(10, model.vocab_size - 300, (given.slots, given.context)).tolist()

    def run() -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(0)
        collect(policy, engine, prompts, max_new_tokens=given.new_tokens, end_token=-1, generator=generator)
        torch.cuda.synchronize()
        return time.perf_counter() - started

    print(f"first run, which records graphs: {run():.1f} s")
    speeds = [given.slots * given.new_tokens / run() for _ in range(3)]
    print(f"tokens a second, prompts included: {', '.join(f'{speed:,.0f}' for speed in speeds)}")
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        run()
    events = sorted(recorded.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    print(f"{total / 1e3 / given.new_tokens:.2f} ms on the device for each token of all slots")
    for event in events[: given.rows]:
        print(f"{event.self_device_time_total / total:6.1%} {event.count:7d} {event.key[:100]}")


if __name__ == "__main__":
    main()
