"""What tests of stored hidden states need."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ollm_rl.options.model import CountedStates, OptionModel


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So that all builds add up in the same order, and do not wait for a busy core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the rows of every pass of the backbone; a shard of these tests takes one."""
    rows: list[int] = []
    plain = OptionModel.counted_states

    def counted_states(self: OptionModel, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> CountedStates:
        rows.append(len(input_ids))
        return plain(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(OptionModel, "counted_states", counted_states)
    return rows
