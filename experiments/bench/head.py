"""Time and memory of the loss after the output head by number of tokens: ours, torch's chunked loss, whole logits.

python -m ollm_rl.experiments.bench.head [--device cuda] [--vocabulary 49152 --hidden 576 --options 10]

Every position has one loss per option, each with its own weight, as in the exact estimator. Memory is the peak that a
forward and backward pass adds, without the inputs. Time is the median over rounds (A B C A B C ...).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from ollm_rl.experiments.bench.sft import PeakMemory
from ollm_rl.experiments.script import positive, start
from ollm_rl.options.losses import token_cross_entropy

Loss = Callable[[torch.Tensor, nn.Linear, torch.Tensor], torch.Tensor]


def whole(hidden: torch.Tensor, head: nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """The loss from all logits at once."""
    return F.cross_entropy(head(hidden).float(), targets, reduction="none")


def chunked_by_torch(hidden: torch.Tensor, head: nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """The chunked loss of torch (2.13 or newer)."""
    options = nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, head.weight, targets, reduction="none", options=options)


def measure(loss: Loss, rows: int, head: nn.Linear, device: str) -> tuple[float, float]:
    """Seconds and bytes of one forward and backward pass."""
    hidden = torch.randn(rows, head.in_features, device=device, dtype=head.weight.dtype, requires_grad=True)
    targets, weights = torch.randint(head.out_features, (rows,), device=device), torch.rand(rows, device=device)
    memory = PeakMemory(device)
    before, started = memory.read(), time.perf_counter()
    (loss(hidden, head, targets) * weights).sum().backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, memory.read() - before


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--vocabulary", type=positive, default=49152)
    parser.add_argument("--hidden", type=positive, default=576)
    parser.add_argument("--options", type=positive, default=10)
    parser.add_argument("--positions", type=positive, nargs="+", default=[64, 128, 256])
    parser.add_argument("--rounds", type=positive, default=3)
    args = parser.parse_args()
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    head = nn.Linear(args.hidden, args.vocabulary, bias=False, device=args.device, dtype=dtype).requires_grad_(False)
    variants: dict[str, Loss] = {"ours": token_cross_entropy, "whole": whole}
    if hasattr(F, "linear_cross_entropy"):
        variants["torch"] = chunked_by_torch
    print("| positions | loss | seconds | peak memory, MB |\n|---|---|---|---|")
    for positions in args.positions:
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        for _ in range(args.rounds + 1):  # the first warms up
            for name, loss in variants.items():
                runs[name].append(measure(loss, positions * args.options, head, args.device))
        for name, figures in runs.items():
            seconds, size = (statistics.median(values) for values in zip(*figures[1:], strict=True))
            print(f"| {positions} | {name} | {seconds:.3f} | {size / 1e6:.0f} |")


if __name__ == "__main__":
    start(main)
