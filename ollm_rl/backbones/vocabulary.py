"""Ids of the vocabulary with a role: those that end a text, and those that are never written.

Letters: V vocabulary.
"""

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def end_tokens(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """All tokens that end a text: the tokenizer's, and those at which the model's ``generate`` stops.

    A chat model often has several, of which the tokenizer names one: the end of a turn and that of a document.
    """
    configured = getattr(backbone.generation_config, "eos_token_id", None)
    stops = configured if isinstance(configured, list) else [configured]
    ids = {int(token) for token in (tokenizer.eos_token_id, *stops) if token is not None}
    return tuple(sorted(token for token in ids if 0 <= token < _size(backbone)))


def suppress_unused(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Keep ids that the tokenizer does not know from being written, by ``generate`` and by `OutputHead`.

    Many vocabularies are padded to a round number, so the model has a few more rows than there are tokens.
    """
    unused = range(max(tokenizer.get_vocab().values()) + 1, _size(backbone))
    if unused and backbone.generation_config is not None:
        suppressed = backbone.generation_config.suppress_tokens or []
        backbone.generation_config.suppress_tokens = sorted({*suppressed, *unused})


def suppressed_tokens(backbone: PreTrainedModel) -> list[int]:
    """Ids that the model never writes: those that its ``generate`` suppresses."""
    suppressed = getattr(backbone.generation_config, "suppress_tokens", None) or []
    return [token for token in suppressed if 0 <= token < _size(backbone)]


def _size(backbone: PreTrainedModel) -> int:
    """V."""
    size: int = backbone.get_input_embeddings().weight.shape[0]
    return size
