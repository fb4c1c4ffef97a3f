"""The recipe of the embedded backbone ``tiny-arith``: a Llama of 1.9M parameters, trained on generated word problems.

Run it: ``python -m ollm_rl.pretrain.tiny_arith --out runs/tiny-arith`` (4 to 14 minutes on two CPU cores), then
copy model.safetensors, config.json and the tokenizer's files to ``ollm_rl/assets/tiny-arith``. Two things let a model
this small learn to calculate this fast. Training begins with careful solutions only, and the mix of ``SolutionMix``
comes later. And the embeddings of numbers start as waves of several periods, so that near numbers are similar.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, set_seed

from ollm_rl.devices import resolve_device
from ollm_rl.options.model import IGNORED
from ollm_rl.pretrain.config import SFTConfig
from ollm_rl.pretrain.data import PadRight
from ollm_rl.pretrain.sft import MetricsFile, train_and_save, training_arguments
from ollm_rl.problems.arith import ArithProblem, SolutionMix, generate
from ollm_rl.runs import exclusive_run

END = "<|end|>"
STEPS, BATCH_SIZE, LEARNING_RATE = 2600, 16, 7e-4
CAREFUL_SHARE = 0.6  # share of the steps that see only careful solutions
CAREFUL_MIX = SolutionMix(short=0.0, switch=0.06, loop=0.0)
TOKENS_PER_SOLUTION = 20  # a constant near the mean; see SumTrainer
PERIODS = (2, 5, 10, 20, 50, 100, 200)  # periods of the waves in the embeddings of numbers
TOKENIZER_STREAM, FIRST_STREAM = 99, 100


class SumTrainer(Trainer):
    """``Trainer`` whose loss is the sum over tokens divided by a constant.

    Batches hold solutions of similar length. With a mean over each batch's tokens, the tokens of short solutions would
    weigh more than those of long ones, and the model would learn to prefer short solutions.
    """

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Summed cross-entropy of the completion tokens over BATCH_SIZE * TOKENS_PER_SOLUTION, in nats."""
        labels = inputs["labels"][:, 1:].flatten()
        # Padding on the right is never visible to a causal model, and without a mask its attention is faster.
        logits = model(input_ids=inputs["input_ids"]).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), labels, reduction="sum", ignore_index=IGNORED)
        return loss / (BATCH_SIZE * TOKENS_PER_SOLUTION)


def _generator(stream: int) -> np.random.Generator:
    """A stream that the embedded weights were trained with; no purpose of `ollm_rl.streams` shares it."""
    return np.random.default_rng([0, stream])


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the generator's text. A word, or a number of up to two digits, is one token."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r" ?\p{L}+| ?\d{1,2}| ?[^\s\p{L}\d]|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (f"{problem.question}\n{problem.solution}" for problem in generate(20_000, _generator(TOKENIZER_STREAM)))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model, with the embeddings of 0 to 99 set to waves of the number."""
    end = tokenizer.eos_token_id
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    angles = 2 * torch.pi * torch.arange(100)[:, None] / torch.tensor(PERIODS)
    waves = torch.stack([angles.cos(), angles.sin()], -1).flatten(1)
    embeddings = model.get_input_embeddings().weight.data
    for number, token in enumerate(tokenizer.convert_tokens_to_ids([f"Ġ{number}" for number in range(100)])):
        if token is not None:  # a number that never occurs in the generated text has no token of its own
            embeddings[token, : waves.shape[1]] = 0.08 * waves[number]  # standard deviation elsewhere: 0.02
    return model


def encode(problem: ArithProblem, tokenizer: PreTrainedTokenizerFast) -> dict[str, list[int]]:
    """``input_ids`` and ``labels`` of one problem; only the completion counts."""
    prompt = tokenizer(f"{problem.question}\n").input_ids
    completion = [*tokenizer(problem.solution).input_ids, tokenizer.eos_token_id]
    return {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}


def training_examples(tokenizer: PreTrainedTokenizerFast, steps: int) -> list[dict[str, list[int]]]:
    """All examples in the order of training, in batches of similar length."""
    block = 20  # batches whose examples are sorted by length together; the batches are then shuffled
    examples: list[dict[str, list[int]]] = []
    for start in range(0, steps, block):
        mix = CAREFUL_MIX if start < CAREFUL_SHARE * steps else SolutionMix()
        problems = generate(block * BATCH_SIZE, _generator(FIRST_STREAM + start), mix=mix)
        encoded = sorted((encode(problem, tokenizer) for problem in problems), key=lambda e: len(e["input_ids"]))
        batches = [encoded[i : i + BATCH_SIZE] for i in range(0, len(encoded), BATCH_SIZE)]
        random.Random(start).shuffle(batches)
        examples += [example for batch in batches for example in batch]
    return examples


def main() -> None:
    """Train the backbone into a folder; after a kill the same command resumes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-arith"), help="folder of the result")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps")
    args = parser.parse_args()
    config = SFTConfig(
        out=args.out,
        stage="backbone",
        max_steps=args.steps,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        save_steps=200,
        logging_steps=50,
    )
    set_seed(config.seed)
    tokenizer = build_tokenizer()
    arguments = training_arguments(config, resolve_device(config.device))
    arguments.train_sampling_strategy = "sequential"
    arguments.adam_beta2, arguments.weight_decay = 0.98, 0.01
    trainer = SumTrainer(
        model=build_model(tokenizer),
        args=arguments,
        train_dataset=training_examples(tokenizer, config.max_steps),
        data_collator=PadRight(tokenizer.pad_token_id),
        callbacks=[MetricsFile()],
    )
    with exclusive_run(config.out, "tiny-arith", config):
        train_and_save(trainer, tokenizer, config.out)


if __name__ == "__main__":
    main()
