"""Teacher-forced evaluation: how well backbone, LoRA and options predict each token of a worked solution.

The true tokens before each token are given (OLLM, Sec. 3, App. B and C).

Letters: N counted positions of a batch or problem, H hidden, K options, V vocabulary.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ollm_rl.backbones import chunks
from ollm_rl.backbones.loading import context_length, load_tokenizer
from ollm_rl.backbones.lora import load_lora
from ollm_rl.devices import resolve_device
from ollm_rl.errors import UsageError
from ollm_rl.options.model import IGNORED, CountedStates, OptionModel
from ollm_rl.pretrain.config import TeacherForcedConfig
from ollm_rl.pretrain.data import PadRight, completion_text, encode_examples
from ollm_rl.pretrain.teacher_forced.answer_span import answer_tokens
from ollm_rl.pretrain.teacher_forced.scores import (
    Scores,
    score_ambiguity,
    score_coverage,
    score_options,
    score_tokens,
)
from ollm_rl.pretrain.teacher_forced.summary import problem_sums, summarise
from ollm_rl.pretrain.teacher_forced.token_report import write_token_report
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.prompts import format_prompts
from ollm_rl.problems.sources import load_problems
from ollm_rl.runs import origin, write_atomic
from ollm_rl.safekeeping.outputs import output_file
from ollm_rl.settings import expect

NUM_TABLES = 8  # problems whose options are listed token by token


@torch.no_grad()
def teacher_forced(
    model: OptionModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    lora: PeftModel | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the backbone, a LoRA on it, and the ways to read the options, on worked solutions.

    The oracle sees the true token, so it shows what the options contain, not what a policy reaches. The encoder sees
    the true token too. Policy and mixture see only h_t. ``score_options`` defines them.

    Args:
        model: Trained options on their backbone.
        tokenizer: The backbone's tokenizer; must be a fast one.
        problems: Only those with a solution are used.
        lora: A LoRA that ``load_lora`` put into ``model.backbone``; adds the column ``lora``.
        batch_size: Solutions per forward pass.
        seed: Seed of the bootstrap.

    Returns:
        What ``summarise`` returns, and ``option_tables``: for each of the first problems ``id``, ``question`` and
        ``rows``. There is one row per completion token, with ``token``, whether it belongs to the ``answer``, and for
        each option its token (``options``) and its probability under ``policy`` and ``encoder``.

    Raises:
        UsageError: If no problem has a solution, or the tokenizer is not a fast one.
    """
    solved = [problem for problem in problems if problem.solution]
    if not solved:
        raise UsageError("the problems hold no worked solutions; teacher forcing needs them")
    examples = encode_examples(solved, tokenizer, max_length=context_length(model.backbone))
    answers = [answer_tokens(completion_text(problem), tokenizer) for problem in solved]
    collate = PadRight(int(tokenizer.pad_token_id))
    batches = (collate(examples[start : start + batch_size]) for start in range(0, len(examples), batch_size))
    scored = (scores for batch in batches for scores in _score_batch(model, lora, batch))
    sums, ambiguity = [], []
    tables: list[dict[str, Any]] = []
    for problem, answer, scores in zip(solved, answers, tqdm(scored, "teacher-forced", len(solved)), strict=True):
        sums.append(problem_sums(scores, answer))
        ambiguity.append((scores["ambiguity", "entropy"], scores["ambiguity", "top_two"]))
        if len(tables) < NUM_TABLES:
            tables.append(_option_table(problem, answer, scores, tokenizer))
    entropies, top_two = (np.concatenate(values) for values in zip(*ambiguity, strict=True))
    return {**summarise(sums, entropies, top_two, seed=seed), "option_tables": tables}


def run_teacher_forced(config: TeacherForcedConfig) -> dict[str, Any]:
    """Run ``teacher_forced`` on the model and data that ``config`` names.

    Writes the result to ``config.out``, if set, and a report of the same stem beside it.

    Raises:
        MissingError: If a folder holds no option plug-in, or no LoRA.
        UsageError: If the data have no solutions, the LoRA belongs to another backbone, or ``out`` cannot be written.
    """
    expect(config, TeacherForcedConfig)
    if config.out is not None and (config.out.suffix == ".html" or config.out.is_dir()):
        raise UsageError(
            f"out={str(config.out)!r} must be a file such as result.json; the report is written beside it as .html"
        )
    with output_file(config.out):
        return _measure(config)


def _measure(config: TeacherForcedConfig) -> dict[str, Any]:
    problems = load_problems(
        config.data, split=config.split, columns=config.columns, limit=config.limit, seed=config.seed
    )
    dtype, device = getattr(torch, config.dtype), resolve_device(config.device)
    options = OptionModel.from_pretrained(config.model, dtype=dtype, device=device)
    tokenizer = load_tokenizer(options.backbone.config.name_or_path)
    format_prompts(tokenizer, config)
    adapter = None if config.lora is None else load_lora(options.backbone, config.lora)
    result = teacher_forced(options, tokenizer, problems, lora=adapter, seed=config.seed)
    result |= {name: getattr(config, name) for name in ("model", "lora", "data", "split", "seed")} | origin()
    if config.out is not None:
        write_atomic(config.out, json.dumps(result, indent=1))
        write_token_report(config.out.with_suffix(".html"), result)
    return result


def _score_batch(
    model: OptionModel, lora: PeftModel | None, batch: dict[str, torch.Tensor]
) -> Iterator[dict[tuple[str, str], np.ndarray]]:
    """The scores of each problem of a padded batch."""
    input_ids, labels, attention_mask = (
        batch[name].to(model.backbone.device) for name in ("input_ids", "labels", "attention_mask")
    )
    size = max(1, chunks.MAX_LOGITS // (model.option_config.num_options * model.vocab_size))

    def in_chunks(score: Callable[[CountedStates], Scores]) -> Scores:
        states = model.counted_states(input_ids, labels, attention_mask)
        parts = [score(CountedStates(*chunk)) for chunk in zip(*(part.split(size) for part in states), strict=True)]
        return {key: torch.cat([part[key] for part in parts]).cpu() for key in parts[0]}

    scores: Scores = {}
    if lora is not None:
        scores |= in_chunks(
            lambda states: score_tokens("lora", model.lm_logits(states.hidden_states).float(), states.targets)
        )
    with contextlib.nullcontext() if lora is None else lora.disable_adapter():
        scores |= in_chunks(lambda states: _score_frozen(model, states))
    lengths = (labels[:, 1:] != IGNORED).sum(1).tolist()
    for parts in zip(*(values.split(lengths) for values in scores.values()), strict=True):
        yield {key: part.numpy() for key, part in zip(scores, parts, strict=True)}


def _score_frozen(model: OptionModel, states: CountedStates) -> Scores:
    """All columns except the LoRA's, and the values that the option tables list."""
    hidden, targets, offsets = states
    backbone, options = model.lm_logits(hidden).float(), model.decode_options(hidden).float()
    log_policy = model.option_logits(hidden).log_softmax(-1)
    encoder_probs = model.adapter.encode(hidden, model.backbone.get_input_embeddings()(targets)).softmax(-1)
    return {
        **score_tokens("backbone", backbone, targets),
        **score_ambiguity(backbone),
        **score_options(options, log_policy, encoder_probs, targets),
        **score_coverage(options, backbone, log_policy, offsets),
        ("listed", "targets"): targets,
        ("listed", "options"): options.argmax(-1),
        ("listed", "policy"): log_policy.exp(),
        ("listed", "encoder"): encoder_probs,
    }


def _option_table(
    problem: Problem, answer: list[int], scores: dict[tuple[str, str], np.ndarray], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """The token of every option at each completion token of a problem (OLLM, App. C)."""
    targets, options = scores["listed", "targets"], scores["listed", "options"]
    policy, encoder = (scores["listed", name].astype(float).round(3) for name in ("policy", "encoder"))
    rows = [
        {
            "token": tokenizer.decode([targets[index]]),
            "answer": index in answer,
            "options": tokenizer.batch_decode(options[index][:, None]),
            "policy": policy[index].tolist(),
            "encoder": encoder[index].tolist(),
        }
        for index in range(len(targets))
    ]
    return {"id": problem.id, "question": problem.question, "rows": rows}
