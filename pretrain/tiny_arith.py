"""The recipe of the embedded backbone ``tiny-arith``: a Llama of 1.9M parameters on generated word problems.

Run it: ``python -m ollm_rl.pretrain.tiny_arith --out runs/tiny-arith`` (about 14 minutes on two slow CPU cores), then
copy model.safetensors, config.json and the tokenizer's files to ``ollm_rl/assets/tiny-arith``. Two things let so small
a model learn to calculate in so short a time: careful solutions come first, and only then the text as ``SolutionMix``
states it; and the embeddings of numbers start as waves of several periods, so that near numbers are alike.
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
from ollm_rl.runs import open_run

END = "<|end|>"
STEPS, BATCH_SIZE, LEARNING_RATE = 2600, 16, 7e-4
CAREFUL_SHARE = 0.6  # of the steps see careful solutions alone
CAREFUL_MIX = SolutionMix(short=0.0, switch=0.06, loop=0.0)
TOKENS_PER_SOLUTION = 20  # a constant near the mean; see SumTrainer
PERIODS = (2, 5, 10, 20, 50, 100, 200)  # of the waves in the embeddings of numbers
TOKENIZER_STREAM, FIRST_STREAM = 99, 100


class SumTrainer(Trainer):
    """``Trainer`` whose loss is the sum over tokens divided by a constant.

    Batches hold solutions of like length; a mean over each batch's tokens would give a token of a short solution more
    weight than one of a long solution, and the model would learn to prefer short ones.
    """

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Summed cross-entropy of the completion tokens over BATCH_SIZE * TOKENS_PER_SOLUTION, in nats."""
        labels = inputs["labels"][:, 1:].flatten()
        # Padding on the right is never visible to a causal model, and without a mask its attention is faster.
        logits = model(input_ids=inputs["input_ids"]).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), labels, reduction="sum", ignore_index=IGNORED)
        return loss / (BATCH_SIZE * TOKENS_PER_SOLUTION)


def _generator(stream: int) -> np.random.Generator:
    """The streams that the embedded weights were trained on; no purpose of `ollm_rl.streams` shares one."""
    return np.random.default_rng([0, stream])


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the generator's text: a word, or a number of up to two digits, is one token."""
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
    """The untrained model, its embeddings of 0 to 99 set to waves of the number."""
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
        if token is not None:  # a number that the generated text never holds has no token of its own
            embeddings[token, : waves.shape[1]] = 0.08 * waves[number]  # the other weights have a deviation of 0.02
    return model


def encode(problem: ArithProblem, tokenizer: PreTrainedTokenizerFast) -> dict[str, list[int]]:
    """``input_ids`` and ``labels`` of one problem; the completion alone counts."""
    prompt = tokenizer(f"{problem.question}\n").input_ids
    completion = [*tokenizer(problem.solution).input_ids, tokenizer.eos_token_id]
    return {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}


def training_examples(tokenizer: PreTrainedTokenizerFast, steps: int) -> list[dict[str, list[int]]]:
    """All examples in the order of training, in batches of like length."""
    block = 20  # batches that are sorted by length together and then shuffled
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
    """Train the backbone into a folder; the same command goes on after a kill."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-arith"), help="folder of the result")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps")
    given = parser.parse_args()
    config = SFTConfig(
        out=given.out,
        stage="backbone",
        max_steps=given.steps,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        save_steps=200,
        logging_steps=50,
    )
    set_seed(config.seed)
    tokenizer = build_tokenizer()
    open_run(config.out, "tiny-arith", config)
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
    train_and_save(trainer, tokenizer, config.out)


if __name__ == "__main__":
    main()
