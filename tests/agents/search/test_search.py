"""Search: known best paths of small trees, exact token counts, and forked branches against recomputed ones."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ollm_rl.agents.policies.base import Choices
from ollm_rl.agents.policies.option import OptionPolicy
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.agents.search.beam import best_moves
from ollm_rl.agents.search.config import SearchConfig, SearchSettings
from ollm_rl.agents.search.forest import Forest
from ollm_rl.agents.search.mcts import puct_scores, select
from ollm_rl.agents.search.run import check_value_head, search, search_ending
from ollm_rl.agents.search.tree import Node, Search, Tree
from ollm_rl.backbones.names import resolve
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import OptionModel
from ollm_rl.problems.problem import Problem
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


END = "."  # stands for the end-of-text token in a script
Script = dict[str, dict[str, float]]  # for each text written so far, the probability of every possible next character


class ScriptedPolicy(OptionPolicy):
    """A policy whose next characters and their probabilities are fixed by a script.

    With the script ``{"": {"1": 0.6, "2": 0.4}, "1": {".": 1.0}, "2": {"7": 1.0}, "27": {".": 1.0}}`` the completion is
    "1" with probability 0.6 and "27" with probability 0.4, because "7" always follows the text "2".

    A search passes only h_t to a policy, not the text. So the constructor computes h_t after every prompt with every
    text of the script, and ``texts_written`` looks up the text whose h_t is nearest. If none is near, as in an idle
    slot, the policy ends the text.

    Args:
        prompts: Questions of the problems that are searched.
        script: Probabilities of the next characters.
        values: Value of a text for the value head; 0 for texts not listed.
    """

    def __init__(self, prompts: Sequence[str], script: Script, values: dict[str, float]) -> None:
        model = OptionModel(tiny_model("llama"), OptionConfig(num_options=2, width=8))
        super().__init__(model)
        self.script = script
        self.known_texts = [text for _ in prompts for text in script]
        token_ids = [ids_of(f"{prompt}\n{text}") for prompt in prompts for text in script]
        self.known_hidden_states = torch.stack([model.hidden_states(torch.tensor([ids]))[0, -1] for ids in token_ids])
        self.value_head = torch.nn.Sequential(ScriptedValues(self.texts_written, values))

    def texts_written(self, hidden_states: torch.Tensor) -> list[str | None]:
        """The text written so far for each h_t, (B, H); None if it is not in the script."""
        # The default mode computes distances by matrix products, whose rounding errors are too large here.
        distances, nearest = torch.cdist(
            hidden_states, self.known_hidden_states, compute_mode="donot_use_mm_for_euclid_dist"
        ).min(-1)
        return [
            self.known_texts[index] if distance < 1e-3 else None
            for distance, index in zip(distances.tolist(), nearest.tolist(), strict=True)
        ]

    def choices(self, hidden_states: torch.Tensor) -> Choices:
        """The possible next tokens of each row; rows with fewer are padded with end-of-text at probability 0."""
        texts = self.texts_written(hidden_states)
        next_characters = [{END: 1.0} if text is None else self.script[text] for text in texts]
        shape = len(texts), max(map(len, next_characters))
        tokens, log_probs = torch.full(shape, EOS), torch.full(shape, -math.inf)
        for row, probabilities in enumerate(next_characters):
            for column, (character, probability) in enumerate(probabilities.items()):
                tokens[row, column] = EOS if character == END else ids_of(character)[0]
                log_probs[row, column] = math.log(probability)
        return Choices(tokens, log_probs)


class ScriptedValues(torch.nn.Module):
    """A value head that returns the value of the text written so far: 0 for a text that ``values`` does not list."""

    def __init__(self, texts_written: Callable[[torch.Tensor], list[str | None]], values: dict[str, float]) -> None:
        super().__init__()
        self.texts_written, self.values = texts_written, values

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Values of h_t: (B, H) -> (B, 1)."""
        texts = self.texts_written(hidden_states)
        return torch.tensor([[0.0 if text is None else self.values.get(text, 0.0)] for text in texts])


# Greedy decoding writes "11" (0.6 * 0.4 = 0.24). The most probable completion is "27" (0.4 * 0.9 = 0.36). After "1" and
# "2" there are branches; after "13" only "7" can follow.
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
# Probability of every completion.
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
        # Tokens of the edges of the tree, ends of text included: "1", "1.", "2.", "37." and "2", "7.", "8."
        assert row["tokens_spent"] == 1 + 2 + 2 + 3 + 1 + 2 + 2
        assert row["choices"]["likelihood"]["completion"] == "27"
    assert (result["generated_tokens"], result["recomputed_tokens"]) == (3 * 13, 0)
    assert result["accuracy"]["oracle"]["mean"] == 0  # no completion states 7, 45 or 99


def test_a_beam_of_one_is_greedy_and_a_beam_of_two_finds_what_is_more_probable() -> None:
    policy = scripted()
    found = {budget: [texts(row) for row in run(policy, "beam", budget)["problems"]] for budget in (4, 6)}
    assert found[4] == [["11"]] * 3
    # The second pass keeps "1" and "2", then "27" (0.36) and "11" (0.24, already known): three more tokens.
    assert found[6] == [["11", "27"]] * 3


def test_a_text_cut_by_the_budget_is_counted_and_is_not_a_completion() -> None:
    policy = scripted()
    for budget in (4, 7, 12):
        for method, leaves in (("beam", 2), ("mcts", 2), ("best-of-n", 1)):
            for row in run(policy, method, budget, leaves=leaves)["problems"]:
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


def test_temperature_changes_the_drawn_texts_and_not_their_reported_probabilities() -> None:
    rows = run(scripted(), "best-of-n", 400, temperature=0.5)["problems"]
    drawn = [(found["completion"], math.exp(found["log_prob"])) for row in rows for found in row["completions"]]
    assert all(prob == pytest.approx(PROBABILITIES[text]) for text, prob in drawn)
    # Squares of 0.6 and 0.4, then of 0.9 and 0.1, each scaled to sum to 1.
    expected = (0.16 / 0.52) * (0.81 / 0.82)
    assert sum(text == "27" for text, _ in drawn) / len(drawn) == pytest.approx(expected, abs=0.08)


def test_a_search_that_the_verifier_guides_stops_at_the_right_answer_and_reports_only_an_oracle() -> None:
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
    assert search_ending(result, SearchConfig(model="m")).startswith("accuracy: by oracle 100.0%; ")


def test_a_value_head_guides_the_search_to_the_branch_with_the_highest_value() -> None:
    # After the first completion every simulation adds one edge. "2" has value 1, "1" has value 0.
    result = run(scripted({"2": 1.0, "27": 0.2, "28": 0.9}), "mcts", 9, leaf_value="value_head", exploration=0.5)
    for row in result["problems"]:
        assert {"27", "28"} <= set(texts(row))
        assert row["choices"]["value"]["completion"] == "28"
        assert row["tokens_spent"] <= 9


@pytest.mark.parametrize("method", ["beam", "mcts"])
@pytest.mark.parametrize("kind", ["options", "tokens"])
def test_forked_branches_find_the_same_completions_as_recomputed_ones_and_cost_no_prefix(
    method: str, kind: str
) -> None:
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
def test_a_tree_does_not_depend_on_the_trees_grown_with_it(method: str) -> None:
    policy = option_policy()
    together, few, alone = (
        run(policy, method, 60, max_new_tokens=12, leaves=2, num_slots=slots)["problems"] for slots in (99, 4, 2)
    )
    for row, *others in zip(together, few, alone, strict=True):
        assert all(texts(other) == texts(row) and other["tokens_spent"] == row["tokens_spent"] for other in others)


def test_every_branch_is_where_options_disagree_and_probabilities_are_summed_by_token() -> None:
    policy = option_policy()
    engine = DecodeEngine(policy.backbone, 2, CONTEXT)
    trees = [Tree(ids_of("Give a?\n"), 40)]
    forest = Forest(policy, engine, end_tokens=[EOS], max_new_tokens=10, leaves=2)

    def expand_all(tree: Tree) -> Search:
        nodes = [tree.root]
        while nodes:
            node = nodes.pop(0)
            nodes += [child for child in (yield [(node, move) for move in node.moves]) if child.moves]

    forest.grow(trees, lambda tree: [expand_all(tree)])
    nodes, model = [trees[0].root], policy._model[0]
    forced = 0
    while nodes:
        node = nodes.pop()
        for child in node.children.values():
            for position in range(len(node.tokens) + 1, len(child.tokens) + bool(child.moves)):
                prefix = torch.tensor([trees[0].prompt + child.tokens[:position]])
                hidden = model.hidden_states(prefix)[:, -1]
                tokens = model.option_tokens(hidden)[0].tolist()
                probs = policy.policy(hidden).softmax(-1)[0].tolist()
                by_token = {token: sum(p for p, t in zip(probs, tokens, strict=True) if t == token) for token in tokens}
                if position < len(child.tokens):
                    assert by_token == {child.tokens[position]: pytest.approx(1.0)}
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
        ({"budget": 3}, "budget_tokens=3 is too small for one completion of max_new_tokens=4"),
        ({"method": "dfs"}, "method='dfs' is unknown; give one of best-of-n, beam, mcts"),
        ({"leaf_value": "hope"}, "leaf_value='hope' is unknown; give one of likelihood, value_head, verifier"),
        ({"leaves": 9, "num_slots": 8}, "leaves=9 must be at most num_slots=8"),
        ({"leaves": 0}, "leaves=0 must be at least 1"),
        ({"method": "best-of-n", "leaves": 2}, "leaves=2 is not used by method=best-of-n; leave it out"),
        ({"method": "beam", "exploration": 2.0}, "exploration=2.0 is not used by method=beam; leave it out"),
        (
            {"method": "beam", "leaf_value": "verifier"},
            "leaf_value='verifier' is not used by method=beam; leave it out",
        ),
        ({"temperature": 0.5}, "temperature=0.5 is not used by method=mcts; leave it out"),
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
