"""Teacher-forced evaluation: how often the next token of a worked solution is named, given the true tokens before it.

Letters: N completion tokens of a problem, K options.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ollm_rl.backbones import context_length, load_tokenizer
from ollm_rl.devices import resolve_device
from ollm_rl.model import OptionModel
from ollm_rl.pretrain.data import PadRight, encode_examples
from ollm_rl.problems import Problem, load_problems
from ollm_rl.runs import origin, write_atomic

RESAMPLES = 2000


@torch.no_grad()
def teacher_forced(
    model: OptionModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """Token accuracies of the backbone, of an oracle over options, of the encoder's and of the policy's choice.

    The oracle counts a token as right if some option's most probable token is the true one: it looks at the answer,
    so it says what the options hold, not what a policy reaches. The encoder also sees the true token. The policy
    sees h_t alone and takes the token with the most probability, added up over options.

    Args:
        model: Trained options on their backbone.
        tokenizer: The backbone's.
        problems: Those with a solution count.
        batch_size: Solutions in a forward pass.
        seed: Of the bootstrap.

    Returns:
        For each of ``backbone``, ``oracle``, ``encoder``, ``policy``: ``[value, low, high]``, the share of all
        tokens with a 95 % bootstrap interval over problems; ``oracle_gain`` likewise, the oracle's share minus the
        backbone's; ``distinct_tokens`` (mean number among the options per position) and the counts
        ``num_problems`` and ``num_tokens``.

    Raises:
        ValueError: If no problem has a solution.
    """
    solved = [problem for problem in problems if problem.solution]
    if not solved:
        raise ValueError("the problems hold no worked solutions; teacher forcing needs them")
    examples = encode_examples(solved, tokenizer, max_length=context_length(model.backbone))
    collate = PadRight(int(tokenizer.pad_token_id))
    counts = []  # one row a problem
    for start in tqdm(range(0, len(examples), batch_size), desc="teacher-forced"):
        batch = {name: x.to(model.backbone.device) for name, x in collate(examples[start : start + batch_size]).items()}
        hidden = model.hidden_states(batch["input_ids"], batch["attention_mask"])
        for row, labels in zip(hidden, batch["labels"], strict=True):
            counted = labels[1:] != -100
            counts.append(_count(model, row[:-1][counted], labels[1:][counted]))
    return _summarise(np.array(counts), seed)


def run_teacher_forced(
    *,
    model: str,
    out: Path | None,
    data: str,
    split: str,
    limit: int | None,
    dtype: str,
    device: str,
    seed: int,
) -> dict[str, Any]:
    """``teacher_forced`` for the option plug-in in the folder ``model``; writes the result to ``out`` if given.

    Raises:
        FileNotFoundError: If the folder holds no option plug-in.
        ValueError: If the data hold no solutions.
    """
    problems = load_problems(data, split=split, limit=limit, seed=seed)
    options = OptionModel.from_pretrained(model, dtype=getattr(torch, dtype), device=resolve_device(device))
    result = teacher_forced(options, load_tokenizer(options.backbone.config.name_or_path), problems, seed=seed)
    result |= {"model": model, "data": data, "split": split, "seed": seed, **origin()}
    if out is not None:
        write_atomic(out, json.dumps(result, indent=1))
    return result


def _count(model: OptionModel, hidden: torch.Tensor, targets: torch.Tensor) -> list[float]:
    """Of one problem: right tokens of backbone, oracle, encoder, policy; sum of distinct tokens; N."""
    option_tokens = torch.cat([model.option_tokens(part) for part in hidden.split(32)])
    encoder = model.adapter.encode(hidden, model.backbone.get_input_embeddings()(targets)).argmax(-1)
    probs = model.option_logits(hidden).softmax(-1)
    same = (option_tokens[:, :, None] == option_tokens[:, None, :]).float()
    policy = (same @ probs[:, :, None])[:, :, 0].argmax(-1)
    ordered = option_tokens.sort(-1).values
    right = [
        model.lm_logits(hidden).argmax(-1) == targets,
        (option_tokens == targets[:, None]).any(-1),
        option_tokens.gather(1, encoder[:, None])[:, 0] == targets,
        option_tokens.gather(1, policy[:, None])[:, 0] == targets,
    ]
    distinct = len(targets) + int((ordered[:, 1:] != ordered[:, :-1]).sum())
    return [*(float(hits.sum()) for hits in right), float(distinct), float(len(targets))]


def _summarise(counts: np.ndarray, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(np.random.SeedSequence([seed]))
    drawn = counts[generator.integers(len(counts), size=(RESAMPLES, len(counts)))].sum(1)
    total = counts.sum(0)

    def interval(value: float, resampled: np.ndarray) -> list[float]:
        return [float(value), *(float(end) for end in np.quantile(resampled, [0.025, 0.975]))]

    shares, resampled = total[:4] / total[5], drawn[:, :4] / drawn[:, 5:]
    names = ("backbone", "oracle", "encoder", "policy")
    return {
        **{name: interval(shares[i], resampled[:, i]) for i, name in enumerate(names)},
        "oracle_gain": interval(shares[1] - shares[0], resampled[:, 1] - resampled[:, 0]),
        "distinct_tokens": float(total[4] / total[5]),
        "num_problems": len(counts),
        "num_tokens": int(total[5]),
    }
