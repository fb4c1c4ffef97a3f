"""Which causal language model classes of transformers are right, which are refused: every class, tiny, random weights.

    python -m ollm_rl.experiments.bench.model_classes --out experiments/results/model_classes.md

A class is right if it is accepted and its greedy tokens in three rows of different length are those of ``generate``,
row by row, and its hidden states those of one pass. It is refused if a ``UsageError`` names it. Anything else, a crash
or a wrong number, is a fault. Each class runs in a process of its own with a time limit.
"""

import argparse
import multiprocessing
import os
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ollm_rl.backbones.output_head import OutputHead
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.errors import UsageError, one_line
from ollm_rl.experiments.script import start
from ollm_rl.runs import origin, write_atomic

SECONDS = 120  # per class
LENGTHS, NEW_TOKENS = (3, 17, 10), 24  # beyond WINDOW in every row
VOCAB, WINDOW, TOLERANCE = 120, 12, 1e-3


class Outcome(NamedTuple):
    """What happened with a class.

    Attributes:
        kind: ``right``, ``refused``, ``not built`` (no tiny config was found), ``wrong`` or ``crashed``.
        detail: Error message, or the relative error of the hidden states.
    """

    kind: str
    detail: str


# Sizes by the names that configs use; names that a config lacks are not passed.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"), VOCAB),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "embedding_size", "emb_dim"), 32),
    **dict.fromkeys(("input_embedding_size", "output_embedding_size", "embedding_dim", "attention_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 4),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "linear_num_heads"), 4
    ),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads", "mamba_n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_query_groups"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "dense_intermediate_size"), 16),
    **dict.fromkeys(("shared_experts_intermediate_size", "moe_shared_expert_intermediate_size", "dim_ff", "dff"), 16),
    **dict.fromkeys(("expert_ffn_hidden_size", "intermediate_size_mlp", "shared_intermediate_size", "d_inner"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "zero_expert_num", "n_shared_experts"), 1),
    **dict.fromkeys(("moe_num_shared_experts", "first_k_dense_replace", "num_dense_layers", "n_groups"), 1),
    **dict.fromkeys(("mamba_n_groups", "mamba_ngroups", "num_nextn_predict_layers"), 1),
    **dict.fromkeys(("head_dim", "swa_head_dim", "kv_channels", "dim_head", "d_head", "query_pre_attn_scalar"), 8),
    **dict.fromkeys(("linear_head_dim", "linear_key_head_dim", "linear_value_head_dim", "mamba_head_dim"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_d_state", "state_size", "ssm_state_size", "time_step_rank"), 8),
    **dict.fromkeys(("mamba_dt_rank", "kv_lora_rank", "q_lora_rank", "o_lora_rank", "index_head_dim"), 8),
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank", "v_head_dim", "rotary_dim", "lru_width"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "index_n_heads", "mamba_num_heads"), 2),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "num_kv_shared_layers"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"), 64),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size", "local_attention"), WINDOW),
    **dict.fromkeys(("window_size", "attention_chunk_size", "keep_window_size", "index_topk"), WINDOW),
    "qk_head_dim": 8,
    "num_kv_shared_layers": 0,
    "lru_width": 32,
    "mamba_expand": 1,
    "type_vocab_size": 1,
    "shape_vocab_size": VOCAB,
    "pronunciation_vocab_size": VOCAB,
    "is_decoder": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
# What the sizes above do not reach, by model type.
EXTRA: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v3", "longcat_flash"), {"num_key_value_heads": 4, "head_dim": 4}),
    **dict.fromkeys(("dots3_note", "dots3_note_text"), {"num_key_value_heads": 4, "per_layer_config": None}),
    "cohere_compass_text": {
        "rope_parameters": dict.fromkeys(
            ("full_attention", "sliding_attention"), {"rope_type": "default", "rope_theta": 1e4}
        )
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "doge": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "hrm_text": {"num_hidden_layers": 1},
    "lfm2": {"full_attn_idxs": [1, 3]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"expand": 1},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local"] * 4},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A config of this class with small sizes, in its parts too."""
    default = config_class()
    parts = {name: getattr(default, name, None) for name in config_class.sub_configs}
    tiny_parts = {name: tiny_config(type(part)) for name, part in parts.items() if isinstance(part, PreTrainedConfig)}
    sizes = {name: size for name, size in SIZES.items() if name in default.to_dict()}
    return config_class(**{**sizes, **tiny_parts, **EXTRA.get(config_class.model_type, {})})


def tiny_model(model_type: str) -> PreTrainedModel:
    """A random model of this type whose logits differ by whole nats."""
    config = tiny_config(CONFIG_MAPPING[model_type])
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(0.3 * noise)
            else:
                parameter.add_(0.1 * noise)
    return model


@torch.no_grad()
def examine(model: PreTrainedModel) -> Outcome:
    """Whether the engine accepts a model and is right."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(5, VOCAB - 5, (length,), generator=generator).tolist() for length in LENGTHS]
    try:
        engine = DecodeEngine(model, len(prompts), max(LENGTHS) + NEW_TOKENS)
        head = OutputHead(model)
    except UsageError as error:
        named = type(model).__name__ in str(error)
        return Outcome("refused" if named else "wrong", one_line(error))
    hidden = [engine.prefill(range(len(prompts)), prompts)]
    tokens = [head(hidden[0]).argmax(-1)]
    for _ in range(NEW_TOKENS - 1):
        hidden.append(engine.step(tokens[-1]))
        tokens.append(head(hidden[-1]).argmax(-1))
    return _compared(model, prompts, torch.stack(tokens, 1), torch.stack(hidden, 1))


def _compared(model: PreTrainedModel, prompts: list[list[int]], tokens: torch.Tensor, hidden: torch.Tensor) -> Outcome:
    """Compare the engine's tokens, (3, NEW_TOKENS), with ``generate`` and its hidden states with single passes."""
    worst = 0.0
    for prompt, row, states in zip(prompts, tokens, hidden, strict=True):
        ids = torch.tensor([prompt])
        settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": None}
        generated = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)
        if generated[0, len(prompt) :].tolist() != row.tolist():
            return Outcome("wrong", f"other tokens than generate after a prompt of {len(prompt)} tokens")
        whole = model.base_model(input_ids=generated[:, :-1], use_cache=False).last_hidden_state[0]
        error = (states - whole[-NEW_TOKENS:]).norm(dim=-1) / whole[-NEW_TOKENS:].norm(dim=-1)
        worst = max(worst, float(error.max()))
    return Outcome("right" if worst < TOLERANCE else "wrong", f"error {worst:.1e}")


def _child(model_type: str, connection: Connection) -> None:
    torch.set_num_threads(1)
    try:
        model = tiny_model(model_type)
    except Exception as error:  # a size that this config does not take
        connection.send(Outcome("not built", f"{type(error).__name__}: {one_line(error)}"))
        return
    try:
        connection.send(examine(model))
    except Exception as error:
        connection.send(Outcome("crashed", f"{type(error).__name__}: {one_line(error)}"))


def outcome(model_type: str) -> Outcome:
    """Build and examine a class in a process of its own."""
    context = multiprocessing.get_context("fork")  # which has imported everything
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(model_type, sender))
    process.start()
    sender.close()
    try:
        result: Outcome = receiver.recv() if receiver.poll(SECONDS) else Outcome("crashed", f"over {SECONDS} s")
    except EOFError:
        result = Outcome("crashed", "the process died")
    process.kill()
    process.join()
    return result


def outcomes(model_types: list[str]) -> Iterator[tuple[str, str, Outcome]]:
    """Model type, class and outcome of each type."""
    for model_type in model_types:
        yield model_type, str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]), outcome(model_type)


def report(rows: list[tuple[str, str, Outcome]]) -> str:
    """The table as Markdown, with counts."""
    counts = Counter(result.kind for _, _, result in rows)
    lines = [
        "# Causal language model classes of transformers",
        "",
        f"`python -m ollm_rl.experiments.bench.model_classes {shlex.join(sys.argv[1:])}`; transformers "
        f"{transformers.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{os.cpu_count()} CPU cores ({platform.machine()}), float32, commit {origin()['commit']}.",
        "",
        f"{len(rows)} model types: " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common()) + ".",
        "",
        "| model type | class | outcome | detail |",
        "|---|---|---|---|",
    ]
    lines += [f"| {kind} | {name} | {result.kind} | {result.detail} |" for kind, name, result in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Examine the classes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", help="model types; all if left out")
    parser.add_argument("--out", type=Path, help="Markdown file of the table")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    types = args.types or [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING_NAMES]
    rows = []
    for row in outcomes(types):
        rows.append(row)
        print(f"{row[0]:24} {row[2].kind:9} {row[2].detail[:150]}", flush=True)
    if args.out:
        write_atomic(args.out, report(rows))


if __name__ == "__main__":
    start(main)
