"""Search: known best paths of enumerable trees, tokens counted one by one, forked branches as recomputed ones."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ollm_rl.agents.policies.base import Choices
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.agents.search.beam import best_moves
from ollm_rl.agents.search.config import SearchSettings
from ollm_rl.agents.search.forest import Forest
from ollm_rl.agents.search.mcts import puct_scores, select
from ollm_rl.agents.search.run import check_value_head, search
from ollm_rl.agents.search.tree import Node, Search, Tree
from ollm_rl.backbones.names import resolve
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.sources import Problem
from tests.tiny_models import CONTEXT, EOS, tiny_model, tiny_tokenizer

PROBLEMS = [
    Problem(id=name, question=f"Give {name}?", solution="", answer=answer, language="en")
    for name, answer in (("a", "7"), ("bcd", "45"), ("ef", "99"))
]


def ids_of(text: str) -> list[int]:
    ids: list[int] = tiny_tokenizer()(text).input_ids
    return ids


def option_policy(seed: int = 0) -> OptionPolicy:
    """Random options that disagree at some positions and agree at others."""
    torch.manual_seed(seed)
    model = OptionModel(tiny_model("llama"), OptionConfig(num_options=5, width=16))
    with torch.no_grad():
        model.adapter.option_embedding.mul_(0.3)
    return OptionPolicy(model)


END = "."  # of a text, in a script
Script = dict[str, dict[str, float]]


class ScriptedPolicy(OptionPolicy):
    """A policy that follows a script: after each text, the characters that may come next with their probabilities.

    A search shows a policy only h_t. So the h_t of each prompt followed by each text of the script is computed once,
    and the text is that of the nearest one. Where none is near, as in an idle slot, the text ends.
    """

    def __init__(self, prompts: Sequence[str], script: Script, values: dict[str, float]) -> None:
        model = OptionModel(tiny_model("llama"), OptionConfig(num_options=2, width=8))
        super().__init__(model)
        self.script, self.texts = script, [text for _ in prompts for text in script]
        sequences = [ids_of(f"{prompt}\n{text}") for prompt in prompts for text in script]
        self.states = torch.stack([model.hidden_states(torch.tensor([ids]))[0, -1] for ids in sequences])
        self.value_head = torch.nn.Sequential(ScriptedValues(self, values))

    def texts_at(self, hidden_states: torch.Tensor) -> list[str | None]:
        """The text that was written when each of these h_t was computed; None where it is not in the script."""
        exact = "donot_use_mm_for_euclid_dist"
        distances, nearest = torch.cdist(hidden_states, self.states, compute_mode=exact).min(-1)
        pairs = zip(distances.tolist(), nearest.tolist(), strict=True)
        return [self.texts[index] if distance < 1e-3 else None for distance, index in pairs]

    def choices(self, hidden_states: torch.Tensor) -> Choices:
        rows = [{END: 1.0} if text is None else self.script[text] for text in self.texts_at(hidden_states)]
        width = max(map(len, rows))
        tokens, log_probs = torch.full((len(rows), width), EOS), torch.full((len(rows), width), -math.inf)
        for row, choices in enumerate(rows):
            for column, (character, probability) in enumerate(choices.items()):
                tokens[row, column] = EOS if character == END else ids_of(character)[0]
                log_probs[row, column] = math.log(probability)
        return Choices(tokens, log_probs)


class ScriptedValues(torch.nn.Module):
    """What each text of a script is worth; 0 where nothing is said."""

    def __init__(self, policy: ScriptedPolicy, values: dict[str, float]) -> None:
        super().__init__()
        self.texts_at, self.values = policy.texts_at, values

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        texts = self.texts_at(hidden_states)
        return torch.tensor([[0.0 if text is None else self.values.get(text, 0.0)] for text in texts])


# Greedily "1" (0.6), then "11." (0.6 * 0.4). The most probable completion is "27." (0.4 * 0.9). After "2" both tokens
# are options, after "27" all say the end; after "1" there are three, of which "13" goes on with "13" + "7" alone.
SCRIPT: Script = {
    "": {"1": 0.6, "2": 0.4},
    "1": {"1": 0.4, "2": 0.3, "3": 0.3},
    "11": {".": 1.0},
    "12": {".": 1.0},
    "13": {"7": 1.0},
    "137": {".": 1.0},
    "2": {"7": 0.9, "8": 0.1},
    "27": {".": 1.0},
    "28": {".": 1.0},
}
# Every completion with the tokens that only it has, in the order in which they branch.
PROBABILITIES = {"11": 0.24, "12": 0.18, "137": 0.18, "27": 0.36, "28": 0.04}


def scripted(values: dict[str, float] | None = None) -> ScriptedPolicy:
    return ScriptedPolicy([problem.question for problem in PROBLEMS], SCRIPT, values or {})


def run(policy: Any, method: Any, budget: int = 40, *, fork: bool = True, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"method": method, "budget_tokens": budget, "max_new_tokens": 4} | changes
    return search(policy, tiny_tokenizer(), PROBLEMS, SearchSettings(**settings), fork=fork)


def texts(row: dict[str, Any]) -> list[str]:
    return [found["completion"] for found in row["completions"]]


@pytest.mark.parametrize("leaves", [1, 3])
@pytest.mark.parametrize("method", ["beam", "mcts"])
def test_a_tree_that_fits_the_budget_is_enumerated_and_every_token_of_it_is_generated_once(
    method: str, leaves: int
) -> None:
    result = run(scripted(), method, leaves=leaves)
    for row in result["problems"]:
        assert {found["completion"]: pytest.approx(math.exp(found["log_prob"])) for found in row["completions"]} == (
            PROBABILITIES
        )
        assert len(texts(row)) == 5
        # "1", "11.", "12.", "137." and "2", "27.", "28.": edges of the tree, ends of text included.
        assert row["tokens_spent"] == 1 + 2 + 2 + 3 + 1 + 2 + 2
        assert row["choices"]["likelihood"]["completion"] == "27"
    assert (result["generated_tokens"], result["recomputed_tokens"]) == (3 * 13, 0)
    assert result["accuracy"]["oracle"]["mean"] == 0  # none of them states 7, 45 or 99


def test_a_beam_of_one_is_greedy_and_a_beam_of_two_finds_what_is_more_probable() -> None:
    policy = scripted()
    found = {budget: [texts(row) for row in run(policy, "beam", budget)["problems"]] for budget in (4, 6)}
    assert found[4] == [["11"]] * 3
    # The second pass keeps "1" and "2", then "27" (0.36) and "11" (0.24, known already): three tokens more.
    assert found[6] == [["11", "27"]] * 3


def test_what_the_budget_cuts_is_counted_and_is_no_completion() -> None:
    policy = scripted()
    for budget in (4, 7, 12):
        for method in ("beam", "mcts", "best-of-n"):
            for row in run(policy, method, budget, leaves=2)["problems"]:
                assert row["tokens_spent"] == budget
                assert row["completions"] and all(text in PROBABILITIES for text in texts(row))
                assert all(found["tokens_spent"] <= budget for found in row["completions"])


def test_samples_have_the_tokens_of_their_texts_and_the_policys_frequencies() -> None:
    rows = run(scripted(), "best-of-n", 400)["problems"]
    for row in rows:
        spent = np.cumsum([len(text) + 1 for text in texts(row)])
        assert [found["tokens_spent"] for found in row["completions"]] == spent.tolist()
    drawn = [text for row in rows for text in texts(row)]
    shares = {text: drawn.count(text) / len(drawn) for text in PROBABILITIES}
    assert shares == pytest.approx(PROBABILITIES, abs=0.08)


def test_temperature_changes_what_is_drawn_and_not_how_probable_it_is_said_to_be() -> None:
    rows = run(scripted(), "best-of-n", 400, temperature=0.5)["problems"]
    drawn = [(found["completion"], math.exp(found["log_prob"])) for row in rows for found in row["completions"]]
    assert all(prob == pytest.approx(PROBABILITIES[text]) for text, prob in drawn)
    # Squares of 0.6 and 0.4, then of 0.9 and 0.1, each scaled to sum to 1.
    expected = (0.16 / 0.52) * (0.81 / 0.82)
    assert sum(text == "27" for text, _ in drawn) / len(drawn) == pytest.approx(expected, abs=0.08)


def test_a_search_that_the_verifier_guides_stops_at_the_right_answer_and_reports_an_oracle_alone() -> None:
    policy = scripted()
    problems = [Problem(id="x", question="Give a?", solution="", answer="137", language="en")]
    settings = SearchSettings(method="mcts", budget_tokens=99, max_new_tokens=4, leaf_value="verifier")
    result = search(policy, tiny_tokenizer(), problems, settings)
    (row,) = result["problems"]
    assert (
        list(result["accuracy"]) == list(result["curves"]) == list(row["choices"]) == [row["chosen_by"]] == ["oracle"]
    )
    assert row["completion"] == texts(row)[-1] == "137" and row["correct"]
    assert row["tokens_spent"] == row["completions"][-1]["tokens_spent"] <= 13


def test_a_value_head_sends_the_search_to_the_branch_of_which_it_expects_most() -> None:
    # After the first completion every simulation is one stretch. "2" is worth 1, "1" nothing.
    result = run(scripted({"2": 1.0, "27": 0.2, "28": 0.9}), "mcts", 9, leaf_value="value_head", exploration=0.5)
    for row in result["problems"]:
        assert {"27", "28"} <= set(texts(row))
        assert row["choices"]["value"]["completion"] == "28"
        assert row["tokens_spent"] <= 9


@pytest.mark.parametrize("method", ["beam", "mcts"])
@pytest.mark.parametrize("kind", ["options", "tokens"])
def test_forked_branches_find_what_recomputed_ones_find_and_cost_no_prefix(method: str, kind: str) -> None:
    policy = option_policy() if kind == "options" else TokenPolicy(tiny_model("llama"), rank=0)
    results = [run(policy, method, 60, max_new_tokens=12, leaves=2, fork=fork) for fork in (True, False)]
    assert results[0]["problems"] == [
        {
            **row,
            "completions": [{**found, "log_prob": pytest.approx(found["log_prob"])} for found in row["completions"]],
        }
        for row in results[1]["problems"]
    ]
    assert results[0]["generated_tokens"] == results[1]["generated_tokens"] == 3 * 60
    assert results[0]["recomputed_tokens"] == 0 < results[1]["recomputed_tokens"]


@pytest.mark.parametrize("method", ["beam", "mcts"])
def test_a_tree_does_not_depend_on_the_trees_beside_it(method: str) -> None:
    policy = option_policy()
    together, few, alone = (
        run(policy, method, 60, max_new_tokens=12, leaves=2, num_slots=slots)["problems"] for slots in (99, 4, 2)
    )
    for row, *others in zip(together, few, alone, strict=True):
        assert all(texts(other) == texts(row) and other["tokens_spent"] == row["tokens_spent"] for other in others)


def test_every_branch_is_where_options_disagree_and_probabilities_are_added_up_by_token() -> None:
    policy = option_policy()
    engine = DecodeEngine(policy.backbone, 2, CONTEXT)
    trees = [Tree(ids_of("Give a?\n"), 40)]
    forest = Forest(policy, engine, end_token=EOS, max_new_tokens=10, leaves=2)

    def everything(tree: Tree) -> Search:
        nodes = [tree.root]
        while nodes:
            node = nodes.pop(0)
            nodes += [child for child in (yield [(node, move) for move in node.moves]) if child.moves]

    forest.grow(trees, lambda tree: [everything(tree)])
    nodes, model = [trees[0].root], policy._model[0]
    forced = 0
    while nodes:
        node = nodes.pop()
        for child in node.children.values():
            for place in range(len(node.tokens) + 1, len(child.tokens) + bool(child.moves)):
                prefix = torch.tensor([trees[0].prompt + child.tokens[:place]])
                hidden = model.hidden_states(prefix)[:, -1]
                tokens = model.option_tokens(hidden)[0].tolist()
                probs = policy.policy(hidden).softmax(-1)[0].tolist()
                by_token = {token: sum(p for p, t in zip(probs, tokens, strict=True) if t == token) for token in tokens}
                if place < len(child.tokens):
                    assert by_token == {child.tokens[place]: pytest.approx(1.0)}
                    forced += 1
                else:
                    assert dict(zip(child.moves, np.exp(child.log_probs), strict=True)) == pytest.approx(by_token)
                    assert len(by_token) > 1
            nodes.append(child)
    assert forced > 5


def node_with(visits: int, total: float, moves: dict[int, float]) -> Node:
    node = Node([], 0.0, 0, 0.0, moves=list(moves), log_probs=[math.log(p) for p in moves.values()])
    node.visits, node.total = visits, total
    return node


def test_puct_scores_are_those_worked_by_hand() -> None:
    node = node_with(16, 4.0, {5: 0.5, 6: 0.25, 7: 0.25})
    node.children = {5: node_with(9, 3.6, {}), 6: node_with(1, 0.0, {})}
    # sqrt(16) = 4. 0.4 + 2 * 0.5 * 4 / 10; 0 + 2 * 0.25 * 4 / 2; the node's own 4 / 16 + 2 * 0.25 * 4 / 1.
    assert puct_scores(node, 2.0) == pytest.approx([0.8, 1.0, 2.25])
    assert select(node, 2.0) == [(node, 7)]
    node.pending = {7}
    node.children[6].exhausted = True
    node.children[5].moves, node.children[5].log_probs = [8], [0.0]
    assert select(node, 2.0) == [(node, 5), (node.children[5], 8)]
    node.children[5].pending = {8}
    assert select(node, 2.0) is None


def test_a_beam_compares_whole_completions() -> None:
    likely, unlikely = node_with(0, 0, {1: 0.5, 2: 0.5}), node_with(0, 0, {3: 0.9, 4: 0.1})
    likely.log_prob, unlikely.log_prob = math.log(0.6), math.log(0.4)
    assert best_moves([likely, unlikely], 3) == [(unlikely, 3), (likely, 1), (likely, 2)]  # 0.36, 0.3, 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 3}, "budget_tokens=3 may not pay for one completion of max_new_tokens=4"),
        ({"method": "dfs"}, "method='dfs' is unknown; give one of best-of-n, beam, mcts"),
        ({"leaf_value": "hope"}, "leaf_value='hope' is unknown; give one of likelihood, value_head, verifier"),
        ({"leaves": 9, "num_slots": 8}, "leaves=9 must be at most num_slots=8"),
        ({"leaves": 0}, "leaves=0 must be at least 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be more than 0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"exploration": -1.0}, "exploration=-1.0 must be at least 0"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_with_its_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(option_policy(), **{"method": "mcts", **changes})


def test_a_search_without_problems_is_refused() -> None:
    with pytest.raises(ValueError, match="problems is empty"):
        search(option_policy(), tiny_tokenizer(), [], SearchSettings())


def test_a_value_head_that_was_not_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no PPO run; give the folder of ollm-rl train --algorithm ppo"):
        check_value_head(resolve(tmp_path))
