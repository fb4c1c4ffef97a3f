"""Hours and memory of ``paper.sh`` on this GPU, from 20 steps of each stage: no weights are needed.

python -m ollm_rl.experiments.studies.paper_cost --out OUT

Writes a stand-in of the backbone (the configuration of DeepSeek-R1-Distill-Qwen-1.5B with random weights) and of both
data sets, and runs each stage with the presets of ``paper.sh``, in a process of its own. OUT has a JSON file for each
stage; those already there are skipped. Prints the table. Random weights never end a completion, so the stages that
generate take their longest.
"""

import argparse
import contextlib
import json
import multiprocessing
import shutil
import statistics
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ollm_rl.cli import parse, run
from ollm_rl.files.records import read_rows
from ollm_rl.report.tables import Table
from ollm_rl.runs import origin, write_atomic

PRESETS = Path(__file__).resolve().parent.parent / "presets"
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
ROWS = 1280  # solutions: 20 steps of 64
OMNI_MATH = 4428  # problems
FULL_STEPS = {"options": 313, "lora": 313, "forced": OMNI_MATH, "latent": 100, "vocabulary": 100, "eval": 5 * OMNI_MATH}
UNITS = {"forced": "problem", "eval": "problem and model", "latent": "iteration", "vocabulary": "iteration"}
WARM_UP = 4  # steps that do not count


def write_standin(folder: Path, config: dict[str, Any], lengths: tuple[int, int], rows: int) -> None:
    """Write ``model``, ``OpenMathReasoning`` and ``Omni-MATH`` with the schemas and splits of the real ones.

    Args:
        folder: For the three folders.
        config: Settings of the Qwen2.
        lengths: Least and most tokens of a solution.
        rows: Number of solutions, and of problems without.
    """
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**config)).to(getattr(torch, config["dtype"])).save_pretrained(folder / "model")
    vocabulary = {
        token: index for index, token in enumerate(["<end>", "\u0120", *string.ascii_letters, *string.digits])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))  # a token per letter
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    ends = {"eos_token": "<end>", "pad_token": "<end>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends).save_pretrained(folder / "model")
    draw = np.random.default_rng(0)

    def letters(count: int) -> str:
        return "".join(draw.choice(list(string.ascii_lowercase + " "), size=count))

    for split, solved in (("cot", True), ("additional_problems", False)):
        table = [
            {
                "expected_answer": str(draw.integers(1000)),
                "problem_type": "has_answer_extracted",
                "problem_source": "aops_c4_high_school_math",
                "generation_model": "DeepSeek-R1" if solved else "n/a",
                "pass_rate_72b_tir": "0.5" if solved else "n/a",
                "problem": letters(lengths[0] // 20),
                "generated_solution": letters(int(draw.integers(*lengths))) if solved else "n/a",
                "inference_mode": "cot" if solved else "n/a",
                "used_in_kaggle": solved,
            }
            for _ in range(rows)
        ]
        path = folder / f"OpenMathReasoning/data/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(table).to_parquet(path)
    omni = [
        {
            "domain": ["Mathematics -> Algebra"],
            "difficulty": 4.5,
            "problem": letters(lengths[0] // 20),
            "solution": letters(lengths[0] // 5),
            "answer": str(number),
            "source": "HMMT_2",
        }
        for number in range(rows)
    ]
    write_atomic(folder / "Omni-MATH/test.jsonl", "\n".join(map(json.dumps, omni)))


def stages(args: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """What measures each stage: seconds per step, iteration or problem."""
    standin, out, steps = args.out / "standin", args.out, args.steps
    data = f"hf:{standin / 'OpenMathReasoning'}"
    omni = ["--data", f"hf:{standin / 'Omni-MATH'}"]
    small = args.tiny

    def ollm(*words: Any) -> float:
        """Seconds of a command."""
        started = time.perf_counter()
        run(*parse([str(word) for word in words]))
        return time.perf_counter() - started

    def sft(name: str, count: int) -> float:
        """Seconds of so many steps, loading included."""
        folder = out / "runs" / f"{name}-{count}"
        shutil.rmtree(folder, ignore_errors=True)
        config = ["--config", PRESETS / f"paper_{name}.yaml", "--epochs", "null", "--max_steps", count]
        tiny = ["--batch_size", 2, "--dtype", "float32"] if small else []
        tiny += {"options": ["--options.width", 8], "lora": ["--gradient_accumulation_steps", 2]}[name] if small else []
        return ollm("sft", *config, "--backbone", standin / "model", "--data", data, "--out", folder, *tiny)

    def sft_step(name: str) -> float:
        return (sft(name, WARM_UP + steps) - sft(name, WARM_UP)) / steps

    model = out / f"runs/options-{WARM_UP + steps}"
    lora = out / f"runs/lora-{WARM_UP + steps}"

    def forced() -> float:
        """Seconds per problem."""
        count = 4 if small else 128
        dtype = "float32" if small else "bfloat16"
        return (
            ollm("teacher-forced", "--model", model, "--lora", lora, *omni, "--limit", count, "--dtype", dtype) / count
        )

    def rl(name: str, *words: Any) -> float:
        """Median seconds of an iteration after the first."""
        folder = out / "runs" / name
        config = ["--config", PRESETS / "paper_rl.yaml", "--iterations", 1 + steps, "--data", data, "--model", model]
        tiny = ["--episodes", 8, "--num_slots", 8, "--max_new_tokens", 8, "--dtype", "float32"] if small else []
        ollm("train", *config, "--out", folder, *words, *tiny)
        rows = read_rows(folder / "metrics.json", {"seconds": float})
        seconds = [row["seconds"] for row in rows]
        return statistics.median(np.diff(seconds).tolist())

    def free() -> float:
        """Seconds per problem of the policy over options."""
        count, tokens, dtype = (4, 8, "float32") if small else (192, 8192, "bfloat16")
        limits = ["--limit", count, "--max_new_tokens", tokens, "--num_slots", min(count, 192), "--dtype", dtype]
        return ollm("eval", "--model", model, *omni, *limits) / count

    return {
        "options": lambda: sft_step("options"),
        "lora": lambda: sft_step("lora"),
        "forced": forced,
        "latent": lambda: rl("latent", "--policy", "latent"),
        "vocabulary": lambda: rl("vocabulary", "--action_space", "tokens", "--learning_rate", 1e-4),
        "eval": free,
    }


def measure(name: str, args: argparse.Namespace) -> None:
    """Measure one stage and write its file."""
    cuda = torch.cuda.is_available()
    seconds = stages(args)[name]()
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
    device = torch.cuda.get_device_name() if cuda else "CPU"
    result = {"seconds": seconds, "peak_gb": peak, "device": device, "tiny": args.tiny, **origin()}
    write_atomic(args.out / f"{name}.json", json.dumps(result, indent=1))


def table(folder: Path) -> Table:
    """Hours and memory of the stages that are measured."""
    rows, total = [], 0.0
    for name, count in FULL_STEPS.items():
        with contextlib.suppress(FileNotFoundError):
            result = json.loads((folder / f"{name}.json").read_text())
            hours = result["seconds"] * count / 3600
            total += hours
            memory = "–" if result["peak_gb"] is None else f"{result['peak_gb']:.1f}"
            unit = f"{count:,} x {UNITS.get(name, 'step')}"
            rows.append([name, f"{result['seconds']:.2f}", unit, f"{hours:.2f}", memory, result["device"]])
    note = f"{total:.2f} hours in all; loading comes on top. Random weights, so completions have their longest length."
    return Table("Cost", note, ["stage", "seconds each", "times", "hours", "peak memory, GB", "device"], rows)


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20, help="steps or iterations of a stage that count")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short texts, to try this script")
    args = parser.parse_args()
    if not (args.out / "standin/Omni-MATH").exists():
        config, lengths = (TINY, (40, 100)) if args.tiny else (DISTILL_QWEN, (2000, 8000))
        write_standin(args.out / "standin", config, lengths, 16 if args.tiny else ROWS)
    for name in FULL_STEPS:
        if not (args.out / f"{name}.json").exists():
            stage = multiprocessing.get_context("spawn").Process(target=measure, args=(name, args))
            stage.start()
            stage.join()
            if stage.exitcode:
                raise SystemExit(f"stage {name} failed; the same command tries it again")
    print(table(args.out).markdown())


if __name__ == "__main__":
    main()
