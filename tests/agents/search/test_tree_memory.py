"""What trees keep in memory: each token once, and no more than fits."""

from collections.abc import Sequence

import pytest

from ollm_rl.decode import memory
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.token_store import TokenStore
from ollm_rl.errors import UsageError
from tests.agents.search.test_search import option_policy, run
from tests.tiny_models import CONTEXT


def test_trees_that_do_not_fit_the_memory_are_refused_by_their_number_and_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = option_policy()
    engine = DecodeEngine(policy.backbone, 1, CONTEXT)
    # Room for three trees of a small budget.
    monkeypatch.setattr(memory, "free_memory", lambda device: 5 * engine.slot_bytes)
    run(policy, "beam", 60, max_new_tokens=12)
    with pytest.raises(
        UsageError, match="num_slots=3 of .* tokens, and budget_tokens=9999 of each tree, need .* fits is"
    ):
        run(policy, "beam", 9999, max_new_tokens=12)


@pytest.mark.parametrize("method", ["beam", "mcts"])
def test_the_states_of_each_token_are_saved_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = TokenStore.save

    def noted(store: TokenStore, slots: Sequence[int], positions: Sequence[int], places: Sequence[int]) -> None:
        saved.extend(places)
        save(store, slots, positions, places)

    monkeypatch.setattr(TokenStore, "save", noted)
    spent = run(option_policy(), method, 60, max_new_tokens=12, leaves=2)["generated_tokens"]
    assert 0 < len(saved) == len(set(saved)) <= spent
