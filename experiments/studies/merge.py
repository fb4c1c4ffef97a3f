"""Merge a LoRA into its backbone: ``python -m ollm_rl.experiments.studies.merge LORA OUT``.

A fine-tuned backbone then travels as its LoRA, a few megabytes, and is made again where it is needed: sums in float64,
rounded to bfloat16, are the same on every machine, so options that were trained on it fit.
"""

import sys
from pathlib import Path

import torch

from ollm_rl.backbones.loading import load_backbone
from ollm_rl.backbones.lora import load_lora
from ollm_rl.backbones.names import resolve


def main(lora: str, out: Path) -> None:
    """Write the merged backbone in bfloat16, with its tokenizer."""
    model = resolve(lora).require("lora", role="lora")
    backbone, tokenizer = load_backbone(model.backbone)
    merged = load_lora(backbone, model).double().merge_and_unload().to(torch.bfloat16)
    tokenizer.save_pretrained(out)
    merged.save_pretrained(out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
