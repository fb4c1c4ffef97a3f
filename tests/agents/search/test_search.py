"""Search: known best paths of enumerable trees, tokens counted one by one, forked branches as recomputed ones."""

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ollm_rl.agents.policies.base import Choices
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.agents.search.beam import best_moves
from ollm_rl.agents.search.choosing import Candidate, by_likelihood, by_majority, by_oracle, correct_at
from ollm_rl.agents.search.forest import Forest
from ollm_rl.agents.search.mcts import puct_scores, select
from ollm_rl.agents.search.run import _check_value_head, search
from ollm_rl.agents.search.samples import pass_at_k
from ollm_rl.agents.search.tree import Node, Search, Tree
from ollm_rl.answers.pool import Verdict
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


class Scripted(OptionPolicy):
    """Choices by the text so far, which is told from h_t: that of every text of the script is known."""

    def __init__(self, prompts: Sequence[str], script: dict[str, dict[str, float]], values: dict[str, float]) -> None:
        model = OptionModel(tiny_model("llama"), OptionConfig(num_options=2, width=8))
        super().__init__(model)
        texts = [(prompt, text) for prompt in prompts for text in script if text != "?"]
        ids = [torch.tensor([ids_of(f"{prompt}\n") + ids_of(text) * bool(text)]) for prompt, text in texts]
        self.known = torch.stack([model.hidden_states(row)[0, -1] for row in ids])
        self.texts, self.script = [text for _, text in texts], script
        self.value_head = torch.nn.Sequential(Values(self, values))

    def places(self, hidden_states: torch.Tensor) -> list[str]:
        exact = "donot_use_mm_for_euclid_dist"
        distances, nearest = torch.cdist(hidden_states, self.known, compute_mode=exact).min(-1)
        # What is not in the script ends at once: slots without an episode, or a search that has lost its way.
        return [
            self.texts[index] if distance < 1e-3 else "?"
            for distance, index in zip(distances.tolist(), nearest.tolist(), strict=True)
        ]

    def choices(self, hidden_states: torch.Tensor) -> Choices:
        rows = [self.script[place] for place in self.places(hidden_states)]
        width = max(map(len, rows))
        tokens = [[ids_of(c)[0] if c != "." else EOS for c in row] + [EOS] * (width - len(row)) for row in rows]
        logs = [[math.log(p) for p in row.values()] + [-math.inf] * (width - len(row)) for row in rows]
        return Choices(torch.tensor(tokens), torch.tensor(logs))


class Values(torch.nn.Module):
    def __init__(self, policy: Scripted, values: dict[str, float]) -> None:
        super().__init__()
        self.places, self.values = policy.places, values

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[self.values.get(place, 0.0)] for place in self.places(hidden_states)])


# Greedily "1" (0.6), then "11." (0.6 * 0.4). The most probable completion is "27." (0.4 * 0.9). After "2" both tokens
# are options, after "27" all say the end; after "1" there are three, of which "13" goes on with "13" + "7" alone.
SCRIPT = {
    "": {"1": 0.6, "2": 0.4},
    "1": {"1": 0.4, "2": 0.3, "3": 0.3},
    "11": {".": 1.0},
    "12": {".": 1.0},
    "13": {"7": 1.0},
    "137": {".": 1.0},
    "2": {"7": 0.9, "8": 0.1},
    "27": {".": 1.0},
    "28": {".": 1.0},
    "?": {".": 1.0},
}
# Every completion with the tokens that only it has, in the order in which they branch.
PROBABILITIES = {"11": 0.24, "12": 0.18, "137": 0.18, "27": 0.36, "28": 0.04}


def scripted(values: dict[str, float] | None = None) -> Scripted:
    return Scripted([problem.question for problem in PROBLEMS], SCRIPT, values or {})


def run(policy: Any, method: Any, budget: int = 40, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"max_new_tokens": 4, "seed": 0} | changes
    return search(policy, tiny_tokenizer(), PROBLEMS, method=method, budget_tokens=budget, **settings)


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
    result = search(
        policy, tiny_tokenizer(), problems, method="mcts", budget_tokens=99, max_new_tokens=4, leaf_value="verifier"
    )
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


def test_pass_at_k_is_the_share_of_the_subsets_with_a_right_sample() -> None:
    for samples, correct in product(range(1, 6), range(6)):
        for k in range(1, samples + 1):
            if correct <= samples:
                subsets = [s for s in product([0, 1], repeat=samples) if sum(s) == k]
                hit = sum(any(s[:correct]) for s in subsets)
                assert pass_at_k(samples, correct, k) == pytest.approx(hit / len(subsets))
    assert pass_at_k(5, 2, 3) == pytest.approx(0.9)  # 1 - C(3, 3) / C(5, 3)
    with pytest.raises(ValueError, match="k=6 .* samples=5; take more samples"):
        pass_at_k(5, 2, 6)


def candidate(
    answer: str | None, log_prob: float, *, vote: float = 1.0, correct: bool = False, spent: int = 0
) -> Candidate:
    return Candidate(f"{answer}", log_prob, 0.0, spent, vote, Verdict(correct, answer, "boxed", "ok"))


def test_each_choice_is_made_by_what_its_name_says() -> None:
    found = [
        candidate("3", -1.0, spent=5),
        candidate(r"\frac{1}{2}", -3.0, spent=9),
        candidate("0.5", -2.0, spent=20),
        candidate(None, -0.5, spent=25),
        candidate("8", -9.0, correct=True, spent=30),
    ]
    assert by_likelihood(found) is found[3]
    assert by_majority(found) is found[2]  # two votes for a half, which 0.5 states more probably
    assert by_oracle(found) is found[4]
    assert by_majority([candidate("1", -1.0, vote=0.5), candidate("2", -2.0, vote=0.6)]).text == "2"
    assert by_majority([found[3]]) is found[3]
    assert [correct_at(found, "oracle", budget) for budget in (4, 29, 30)] == [False, False, True]
    assert not correct_at(found, "majority")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 3}, "budget_tokens=3 may not pay for one completion of max_new_tokens=4"),
        ({"method": "dfs"}, "method='dfs' is unknown; give one of best-of-n, beam, mcts"),
        ({"leaf_value": "hope"}, "leaf_value='hope' is unknown; give one of likelihood, value_head, verifier"),
        ({"leaves": 9, "num_slots": 8}, "leaves=9 must be at least 1 and at most num_slots=8"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"exploration": -1.0}, "exploration=-1.0 must be at least 0"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_with_its_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(option_policy(), **{"method": "mcts", **changes})


def test_a_search_without_problems_is_refused() -> None:
    with pytest.raises(ValueError, match="problems is empty"):
        search(option_policy(), tiny_tokenizer(), [], method="beam", budget_tokens=9, max_new_tokens=4)


def test_a_value_head_that_was_not_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no PPO run; give the folder of ollm-rl train --algorithm ppo"):
        _check_value_head(str(tmp_path))
