"""What all tests of decoding share."""

import pytest

from ollm_rl.decode import engine


@pytest.fixture(autouse=True)
def live_chunks_for_few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the few slots of these tests read only their live parts too, as many slots do."""
    monkeypatch.setattr(engine, "MANY_SLOTS", 1)
