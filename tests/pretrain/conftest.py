"""Fixtures for tests of stored hidden states."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ollm_rl.options.model import CountedStates, OptionModel


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One torch thread, so that all builds sum in the same order and do not wait for a busy core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
