"""Fixtures for tests of stored hidden states."""

from typing import Any

import pytest
import torch

from ollm_rl.options.model import CountedStates, OptionModel


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that receives the number of rows of every backbone pass; each shard in these tests takes one pass."""
    rows: list[int] = []
    plain = OptionModel.counted_states

    def counted_states(self: OptionModel, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> CountedStates:
        rows.append(len(input_ids))
        return plain(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(OptionModel, "counted_states", counted_states)
    return rows
