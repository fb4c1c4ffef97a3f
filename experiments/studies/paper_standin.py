"""A stand-in for the paper's setting: a random Qwen2, and both data sets with their schemas and splits.

A token is a letter, so lengths in tokens are lengths in letters.
"""

import json
import string
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ollm_rl.runs import write_atomic

DISTILL_QWEN = {  # config.json of DeepSeek-R1-Distill-Qwen-1.5B
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
TINY = {
    **DISTILL_QWEN,
    "vocab_size": 1100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "dtype": "float32",
}
LETTERS = [*string.ascii_lowercase, " "]


def write_standin(folder: Path, config: dict[str, Any], lengths: tuple[int, int], rows: int) -> None:
    """Write ``model``, ``OpenMathReasoning`` and ``Omni-MATH``.

    Args:
        folder: For the three folders.
        config: Settings of the Qwen2.
        lengths: Least and most tokens of a solution.
        rows: Number of solutions, of problems without, and of test problems.
    """
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**config)).to(getattr(torch, config["dtype"])).save_pretrained(folder / "model")
    letter_tokenizer(config["vocab_size"]).save_pretrained(folder / "model")
    draw = np.random.default_rng(0)
    for split, solved in (("cot", True), ("additional_problems", False)):
        path = folder / f"OpenMathReasoning/data/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = [reasoning_row(draw, lengths, solved=solved) for _ in range(rows)]
        datasets.Dataset.from_list(table).to_parquet(path)
    omni = [omni_row(draw, lengths) for _ in range(rows)]
    write_atomic(folder / "Omni-MATH/test.jsonl", "\n".join(map(json.dumps, omni)))


def letter_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One token per letter: byte-level BPE without merges.

    Args:
        size: Number of tokens. Most are no letter and in no text, so that a random one hardly ever ends a completion.
    """
    alphabet = ["<end>", "\u0120", *string.ascii_letters, *string.digits]
    alphabet += [f"<{index}>" for index in range(len(alphabet), size - 1)]  # Qwen2 tokenizers add one
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def letters(draw: np.random.Generator, count: int) -> str:
    """A random text of so many tokens."""
    return "".join(draw.choice(LETTERS, size=count))


def reasoning_row(draw: np.random.Generator, lengths: tuple[int, int], *, solved: bool) -> dict[str, Any]:
    """A row with the columns of OpenMathReasoning."""
    return {
        "expected_answer": str(draw.integers(1000)),
        "problem_type": "has_answer_extracted",
        "problem_source": "aops_c4_high_school_math",
        "generation_model": "DeepSeek-R1" if solved else "n/a",
        "pass_rate_72b_tir": "0.5" if solved else "n/a",
        "problem": letters(draw, lengths[0] // 20),
        "generated_solution": letters(draw, int(draw.integers(*lengths))) if solved else "n/a",
        "inference_mode": "cot" if solved else "n/a",
        "used_in_kaggle": solved,
    }


def omni_row(draw: np.random.Generator, lengths: tuple[int, int]) -> dict[str, Any]:
    """A row with the columns of Omni-MATH."""
    return {
        "domain": ["Mathematics -> Algebra"],
        "difficulty": 4.5,
        "problem": letters(draw, lengths[0] // 20),
        "solution": letters(draw, lengths[0] // 5),
        "answer": str(draw.integers(1000)),
        "source": "HMMT_2",
    }
