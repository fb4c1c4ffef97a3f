"""Labels and padding of which nothing could be learned, or something wrong."""

import pytest
import torch

from ollm_rl.options.model import OptionModel
from tests.options.test_model import CONFIG, random_ids
from tests.tiny_models import tiny_model


def test_labels_without_a_token_that_counts_are_refused() -> None:
    model = OptionModel(tiny_model("llama"), CONFIG)
    ids = random_ids(2, 6)
    labels = torch.full_like(ids, -100)
    labels[:, 0] = 5  # nothing comes before it
    with pytest.raises(ValueError, match="labels hold no token that counts"):
        model(ids, labels)


def test_padding_on_the_left_and_padding_that_counts_are_refused() -> None:
    model = OptionModel(tiny_model("llama"), CONFIG)
    ids, mask = random_ids(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[0, 4:] = 0
    with pytest.raises(ValueError, match="labels count padding, where attention_mask is 0; set them to -100 there"):
        model(ids, ids, mask)
    with pytest.raises(ValueError, match="input_ids are padded on the left; pad on the right"):
        model(ids, ids, mask.flip(1))
