"""Merge a LoRA into its backbone: ``python -m ollm_rl.experiments.studies.merge LORA OUT``.

A fine-tuned backbone then travels as its LoRA, a few megabytes, and is made again where it is needed: sums in float64,
rounded to bfloat16, are the same on every machine, so options that were trained on it fit.
"""

import argparse
from pathlib import Path

import torch

from ollm_rl.backbones.loading import load_backbone
from ollm_rl.backbones.lora import load_lora
from ollm_rl.backbones.names import resolve
from ollm_rl.experiments.script import start


def merge(lora: str, out: Path) -> None:
    """Write the merged backbone in bfloat16, with its tokenizer."""
    model = resolve(lora).require("lora", role="lora")
    backbone, tokenizer = load_backbone(model.backbone)
    merged = load_lora(backbone, model).double().merge_and_unload().to(torch.bfloat16)
    tokenizer.save_pretrained(out)
    merged.save_pretrained(out)


def main() -> None:
    """Merge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lora", help="LoRA of ollm-rl sft")
    parser.add_argument("out", type=Path, help="folder of the backbone to write")
    args = parser.parse_args()
    merge(args.lora, args.out)


if __name__ == "__main__":
    start(main)
