"""How probable completions are to the backbone: a text that drifts away from it becomes improbable.

Letters: B completions of a pass, T tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ollm_rl.agents.completions import Row
from ollm_rl.backbones.loading import context_length
from ollm_rl.backbones.output_head import OutputHead, last_hidden_states
from ollm_rl.backbones.vocabulary import end_tokens
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.prompts import encode_prompts

PASS_COMPLETIONS = 64


def log_likelihoods(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[float]:
    """Mean log-probability per token of each completion after its question, in nats.

    The completion's text is tokenized again; the token that ends it counts where it ended by itself. NaN for a
    completion without tokens.

    Args:
        backbone: The model without options and without LoRA.
        tokenizer: Its tokenizer.
        rows: Records of completions, as `Completion.row` writes them.
    """
    texts = [(row["question"], row["completion"], row["terminated"]) for row in rows]
    distinct = sorted(set(texts), key=lambda text: len(text[0]) + len(text[1]))
    problems = [
        Problem(id=str(number), question=question, solution="", answer="", language="")
        for number, (question, _, _) in enumerate(distinct)
    ]
    prompts = encode_prompts(problems, tokenizer, max_length=context_length(backbone))
    end = end_tokens(backbone, tokenizer)[:1]
    completions = [
        [*tokenizer(text, add_special_tokens=False).input_ids, *(end if terminated else ())]
        for _, text, terminated in distinct
    ]
    found: list[float] = []
    for start in range(0, len(distinct), PASS_COMPLETIONS):
        part = slice(start, start + PASS_COMPLETIONS)
        found += _means(backbone, prompts[part], completions[part])
    by_text = dict(zip(distinct, found, strict=True))
    return [by_text[text] for text in texts]


@torch.no_grad()
def _means(
    backbone: PreTrainedModel, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[float]:
    sequences = [torch.tensor([*prompt, *tokens]) for prompt, tokens in zip(prompts, completions, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True).to(backbone.device)  # (B, T)
    place = torch.arange(ids.shape[1], device=ids.device)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=ids.device)[:, None]
    first = torch.tensor([len(prompt) for prompt in prompts], device=ids.device)[:, None]
    hidden = last_hidden_states(backbone, ids, (place < lengths).long())
    counts = (place >= first) & (place < lengths)
    row, position = counts.nonzero(as_tuple=True)
    # h_t of the token before; only these, since (B, T, V) would not fit.
    log_probs = OutputHead(backbone)(hidden[row, position - 1]).float().log_softmax(-1)
    chosen = log_probs.gather(1, ids[row, position][:, None])[:, 0]
    sums = torch.zeros(len(sequences), device=ids.device).index_add_(0, row, chosen)
    means: list[float] = (sums / counts.sum(1)).tolist()  # 0 / 0 is NaN
    return means
