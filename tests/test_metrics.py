"""Language switching, degeneracy and intervals; expectations are worked by hand."""

import numpy as np
import pytest

from ollm_rl.metrics import (
    bootstrap_interval,
    degeneracy,
    degeneracy_rate,
    detect_language,
    language_switching_rate,
    switches_language,
)

ENGLISH_PROMPT = "Tom has 12 apples. He buys 7 more and gives 5 away. How many apples are left?"
SPANISH_PROMPT = "Ana tiene 12 manzanas. Compra 7 más y regala 5. ¿Cuántas manzanas le quedan?"
ENGLISH = "Tom starts with 12 apples. He buys 7, so 12 + 7 = 19. He gives 5 away: 19 - 5 = 14. The answer is 14."
SPANISH = "Ana empieza con 12 manzanas. Compra 7: 12 + 7 = 19. Luego regala 5: 19 - 5 = 14. La respuesta es 14."
MIXED = "First we start with 12 apples. Then we add 7, so 12 + 7 = 19. Quitamos 5: 19 - 5 = 14. La respuesta es 14."


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The answer is 14.", "en"),
        ("12 + 7 = 19, 19 - 5 = 14. Respuesta: 14.", "es"),
        ("Roger a commencé avec 5 balles. La réponse est 11.", "fr"),
        ("一共有 11 个球。", "zh"),
        ("ਕੁੱਲ 12 + 7", None),  # Gurmukhi, a script of no known language
        (r"12 + 7 = \boxed{19} km", None),
        ("", None),
    ],
)
def test_the_language_of_short_solutions_is_told(text: str, language: str | None) -> None:
    assert detect_language(text) == language


@pytest.mark.parametrize(
    ("prompt", "completion", "switches"),
    [
        (ENGLISH_PROMPT, ENGLISH, False),
        (SPANISH_PROMPT, SPANISH, False),
        (ENGLISH_PROMPT, SPANISH, True),
        (SPANISH_PROMPT, ENGLISH, True),
        (ENGLISH_PROMPT, MIXED, True),
        (SPANISH_PROMPT, MIXED, True),
        (SPANISH_PROMPT, "12 + 7 = 19, 19 - 5 = 14. Respuesta: 14.", False),
        (ENGLISH_PROMPT, "12 + 7 = 19, 19 - 5 = 14. Respuesta: 14.", True),
        (ENGLISH_PROMPT, "We start with the apples that Tom has 一共有十九个苹果还剩下十四个苹果", True),
        (
            "Ana and Luis share 12 legos. How many does Luis get?",
            "Luis: 12 / 2 = 6 legos. Ana: 6 legos. Total: 6.",
            False,
        ),
        ("Compute $3 + 4$.", "We have 3 + 4 = 7.", False),
        ("12 + 7 =", "La respuesta es 19.", False),
        (ENGLISH_PROMPT, "19 - 5 = 14", False),
    ],
)
def test_a_switch_of_language_is_seen_and_names_and_numbers_are_none(
    prompt: str, completion: str, switches: bool
) -> None:
    assert switches_language(prompt, completion) == switches


def test_one_foreign_word_in_five_is_a_switch_and_one_in_eight_is_not() -> None:
    # 3 of 15 words ("La respuesta es"), then 3 of 24.
    fifteen = "First he has twelve apples. Then he buys seven more of them. La respuesta es 19."
    assert switches_language(ENGLISH_PROMPT, fifteen)
    assert not switches_language(ENGLISH_PROMPT, "After this he gives five of the apples away. " + fifteen)


def test_the_switching_rate_is_the_share_of_completions_that_switch() -> None:
    prompts = [ENGLISH_PROMPT] * 3 + [SPANISH_PROMPT]
    assert language_switching_rate(prompts, [ENGLISH, MIXED, ENGLISH, SPANISH]) == 0.25


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (ENGLISH, set()),
        ("He has 3 * 2 = 6\nIn total 6 + 1 = 7", set()),
        ("12 + 7 = 19. 12 + 7 = 19. 12 + 7 = 19. 12 + 7 = 19. 12 + 7 = 19.", {"loop"}),
        ("12+7=19." * 5, {"loop"}),
        ("12 + 7 = 19. 12 + 7 = 19. 12 + 7 = 19.", set()),  # three times only
        ("So we get 5. " + "and then " * 10, {"loop"}),
        ("ha" * 200, {"loop", "no_answer"}),
        ("哈" * 20, {"loop", "no_answer"}),
        ("I cannot tell.", {"no_answer"}),
        ("The answer is x.", set()),
        (" \n", {"empty"}),
        ("", {"empty"}),
    ],
)
def test_degenerate_texts_are_flagged_by_name(text: str, flags: set[str]) -> None:
    assert degeneracy(text) == flags


def test_a_loop_counts_only_if_it_covers_half_of_the_text() -> None:
    sound = "First Tom buys seven more apples at the market and then he gives five of them to a friend of his"
    assert degeneracy(f"{sound} so 1 2 1 2 1 2 1 2 1 2 1 2") == set()  # 12 of 34 tokens
    assert degeneracy(f"{sound} so" + " 1 2" * 12) == {"loop"}  # 24 of 46


def test_a_completion_cut_off_at_the_limit_has_no_end() -> None:
    assert degeneracy("12 + 7 = 19", finished=False) == {"no_end"}
    assert degeneracy("", finished=False) == {"no_end", "empty"}


def test_the_degeneracy_rate_counts_a_completion_once() -> None:
    assert degeneracy_rate(["", "The answer is 3.", "It is 4.", "5"], [False, True, False, True]) == 0.5


@pytest.mark.parametrize("rate", [language_switching_rate, degeneracy_rate])
def test_rates_ask_for_pairs(rate) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"\(1\) and .* \(2\) must be of one length"):
        rate(["a"], ["b", "c"])
    with pytest.raises(ValueError, match="not empty"):
        rate([], [])


def test_the_interval_of_a_fair_coin_is_that_of_the_normal_distribution() -> None:
    # 400 tosses, standard error 0.5 / 20 = 0.025, so 0.5 -+ 1.96 * 0.025 = 0.451, 0.549.
    lower, upper = bootstrap_interval([0, 1] * 200)
    assert lower == pytest.approx(0.451, abs=0.006)
    assert upper == pytest.approx(0.549, abs=0.006)


def test_data_without_spread_get_the_exact_binomial_interval() -> None:
    # 0.025 ** (1 / 500) = exp(-3.688879 / 500) = 0.9926494
    assert bootstrap_interval([0] * 500) == pytest.approx((0.0, 0.0073506), abs=1e-6)
    assert bootstrap_interval([1] * 500) == pytest.approx((0.9926494, 1.0), abs=1e-6)


def test_equal_seeds_give_equal_intervals() -> None:
    values = np.random.default_rng(7).normal(size=50)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_more_confidence_means_a_wider_interval() -> None:
    values = np.arange(30.0)
    narrow, wide = bootstrap_interval(values, confidence=0.5), bootstrap_interval(values, confidence=0.99)
    assert wide[0] < narrow[0] < 14.5 < narrow[1] < wide[1]


@pytest.mark.parametrize(("values", "confidence"), [([], 0.95), ([1.0, float("nan")], 0.95), ([1.0], 95)])
def test_an_interval_of_no_numbers_is_refused(values: list[float], confidence: float) -> None:
    with pytest.raises(ValueError, match="must"):
        bootstrap_interval(values, confidence=confidence)
