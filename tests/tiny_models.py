"""Tiny random language models and a byte tokenizer, built from configs: no network, milliseconds each."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

VOCAB, HIDDEN, CONTEXT, WINDOW = 97, 32, 64, 8
EOS = 0  # <|endoftext|>; the other tokens are the bytes of ASCII without ` and ~, and those of "é"
FAMILIES = ("llama", "qwen2", "gpt2", "gemma2", "mistral")

# Without an end of text, ``generate`` continues to the requested length.
_ENDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": EOS}
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    **_ENDS,
}


def tiny_config(family: str) -> Any:
    """The config of a model with 2 layers; Gemma2's first and all of Mistral's layers see WINDOW tokens.

    DeepSeek is here only because its keys and values differ in size.
    """
    if family == "llama":
        return LlamaConfig(**_COMMON)
    if family == "qwen2":
        return Qwen2Config(**_COMMON)
    if family == "mistral":
        return MistralConfig(**_COMMON, sliding_window=WINDOW)
    if family == "gemma2":
        # Caps this low change the logits and scores of a random model too.
        caps: dict[str, Any] = {"final_logit_softcapping": 4.0, "attn_logit_softcapping": 2.0}
        # GPT-2 covers tied weights; here they would make a random model repeat one token.
        caps["tie_word_embeddings"] = False
        return Gemma2Config(**_COMMON, **caps, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW)
    if family == "deepseek":
        sizes = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 12}
        return DeepseekV3Config(**{**_COMMON, "num_key_value_heads": 4}, **sizes, first_k_dense_replace=2)
    assert family == "gpt2"
    return GPT2Config(vocab_size=VOCAB, n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=CONTEXT, **_ENDS)


def tiny_model(family: str, *, seed: int = 0, attention: str | None = None) -> PreTrainedModel:
    """A random causal language model in float32, scaled so that its logits differ by whole nats.

    ``attention`` is the implementation; None takes the family's default (eager for Gemma2, else SDPA).
    """
    return randomized(AutoModelForCausalLM.from_config(tiny_config(family), attn_implementation=attention).eval(), seed)


def unshared(family: str) -> PreTrainedModel:
    """As ``tiny_model``, without heads that share keys."""
    config = tiny_config(family)
    config.num_key_value_heads = config.num_attention_heads
    return randomized(AutoModelForCausalLM.from_config(config).eval())


def randomized(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """The model with random weights, scaled as in ``tiny_model``."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(0.4 * noise)
            else:
                parameter.add_(0.1 * noise)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """One token per byte: byte-level BPE without merges."""
    # How byte-level BPE writes the line break, the space and the two bytes of "é".
    alphabet = ["Ċ", "Ġ", "Ã", "©", *(chr(code) for code in range(0x21, 0x7F) if chr(code) not in "`~")]
    vocabulary = {token: index for index, token in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)


def save_backbone(folder: Path, family: str = "llama", *, seed: int = 0) -> str:
    """Write a tiny model and its tokenizer into a folder that ``load_backbone`` takes as a name."""
    tiny_model(family, seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def greedy_generate(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """``count`` tokens that Hugging Face's ``generate`` appends greedily to one prompt, beyond the end of text too."""
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count)
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


def full_hidden_states(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Hidden states (T, H) of one sequence in one pass without a cache."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False, output_hidden_states=True)
    hidden: torch.Tensor = output.hidden_states[-1][0]
    return hidden
