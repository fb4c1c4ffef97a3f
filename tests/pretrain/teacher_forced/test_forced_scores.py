"""Scores at single positions, worked by hand from small tables of probabilities."""

from math import log

import pytest
import torch

from ollm_rl.pretrain.teacher_forced.scores import Scores, score_ambiguity, score_coverage, score_options, score_tokens

POLICY = [0.3, 0.3, 0.4]
DISAGREEING = [[0.5, 0.25, 0.25], [0.6, 0.2, 0.2], [0.1, 0.8, 0.1]]  # tokens 0, 0, 1
AGREEING = [[0.5, 0.25, 0.25], [0.6, 0.2, 0.2], [0.7, 0.1, 0.2]]  # token 0


def score(options: list[list[float]], *, target: int, encoder: int) -> dict[str, float]:
    """Scores of one position with POLICY, by "column measure"."""
    found: Scores = score_options(
        torch.tensor([options]).log() + 3.0,  # logits are defined up to a constant
        torch.tensor([POLICY]).log(),
        torch.eye(3)[[encoder]],
        torch.tensor([target]),
    )
    return {" ".join(key): float(values) for key, values in found.items()}


def test_every_column_has_the_numbers_worked_by_hand() -> None:
    found = score(DISAGREEING, target=1, encoder=1)
    assert found == pytest.approx(
        {
            "oracle right": 1,
            "oracle nll": -log(0.8),
            "oracle information": -log(0.4),
            "oracle decision_nll": -log(0.8),
            "encoder right": 0,
            "encoder nll": -log(0.2),
            # Options 0 and 1 have the same token: one decision of 0.6, under which token 1 has (0.075 + 0.06) / 0.6.
            "encoder information": -log(0.6),
            "encoder decision_nll": -log(0.225),
            # Option 2 is the most probable, but token 0 has more votes.
            "policy right": 0,
            "policy nll": -log(0.8),
            # 0.37, 0.455 and 0.175.
            "mixture right": 1,
            "mixture nll": -log(0.455),
            "options distinct": 2,
        },
        abs=1e-6,
    )


def test_modes_count_where_options_differ_and_among_the_first_tokens() -> None:
    logits = torch.tensor([DISAGREEING, AGREEING, DISAGREEING]).log()
    backbone = torch.tensor([[0.5, 0.45, 0.05], [0.5, 0.3, 0.2], [0.12, 0.18, 0.7]]).log() - 1.0
    found = score_coverage(logits, backbone, torch.tensor([POLICY] * 3).log(), torch.tensor([0, 7, 8]))
    assert {" ".join(key): values.tolist() for key, values in found.items() if key[1] != "mutual_information"} == {
        "options live": [True, False, True],
        # Tokens 0 and 1 are offered at the first and last position, token 0 at the second.
        "live_modes all": [2, 0, 3],
        "live_modes offered": [2, 0, 2],
        "first_modes all": [2, 3, 0],
        "first_modes offered": [2, 1, 0],
    }


def test_options_that_agree_reveal_exactly_nothing() -> None:
    found = score(AGREEING, target=2, encoder=1)
    assert found["oracle information"] == found["encoder information"] == 0
    assert found["oracle nll"] == pytest.approx(-log(0.25))
    # Without revealed information the token has the probability of the mixture: 0.075 + 0.06 + 0.08.
    assert found["oracle decision_nll"] == found["encoder decision_nll"] == pytest.approx(-log(0.215))
    assert found["mixture nll"] == pytest.approx(-log(0.215))
    assert (found["oracle right"], found["options distinct"]) == (0, 1)


def test_coding_a_decision_and_then_the_token_is_never_shorter_than_under_the_mixture() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 4, 6, generator=generator)
    log_policy = torch.randn(500, 4, generator=generator).log_softmax(-1)
    targets = torch.randint(6, (500,), generator=generator)
    found = score_options(logits, log_policy, torch.rand(500, 4, generator=generator), targets)
    for column in ("oracle", "encoder"):
        code_length = found[column, "information"] + found[column, "decision_nll"]
        assert (code_length >= found["mixture", "nll"] - 1e-5).all()


def test_a_distribution_over_tokens_is_scored_by_its_logits() -> None:
    logits = torch.tensor([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3]]).log() - 1.0
    found = score_tokens("lora", logits, torch.tensor([1, 2]))
    assert found["lora", "right"].tolist() == [True, False]
    assert found["lora", "nll"].tolist() == pytest.approx([-log(0.5), -log(0.3)])


def test_entropy_and_the_two_most_probable_tokens_are_those_worked_by_hand() -> None:
    tiny = 1e-30
    rows = [[0.25] * 4, [0.99, 0.01, tiny, tiny], [0.5, 0.3, 0.2, tiny]]
    found = score_ambiguity(torch.tensor(rows).log())
    # log 4; -0.99 log 0.99 - 0.01 log 0.01; -0.5 log 0.5 - 0.3 log 0.3 - 0.2 log 0.2
    assert found["ambiguity", "entropy"].tolist() == pytest.approx([1.386294, 0.056002, 1.029653], abs=1e-5)
    assert found["ambiguity", "deterministic"].tolist() == [False, True, False]
    assert found["ambiguity", "ambiguous"].tolist() == [True, False, True]
    assert found["ambiguity", "top_two"].tolist() == pytest.approx([0.5, 1.0, 0.8])
    assert found["ambiguity", "ambiguous_top_two"].tolist() == pytest.approx([0.5, 0.0, 0.8])
