"""The tokens that end a text."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def end_tokens(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """All tokens that end a text: the tokenizer's, and those at which the model's ``generate`` stops.

    A chat model often has several, of which the tokenizer names one: the end of a turn and that of a document.
    """
    vocab_size = backbone.get_input_embeddings().weight.shape[0]
    configured = getattr(backbone.generation_config, "eos_token_id", None)
    stops = configured if isinstance(configured, list) else [configured]
    ids = {int(token) for token in (tokenizer.eos_token_id, *stops) if token is not None}
    return tuple(sorted(token for token in ids if 0 <= token < vocab_size))
