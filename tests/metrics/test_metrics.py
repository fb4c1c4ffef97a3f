"""Language switching and degeneracy; expectations are worked by hand."""

import re

import numpy as np
import pytest

from ollm_rl.metrics.degenerate import is_improbable
from ollm_rl.metrics.gibberish import letter_bits
from ollm_rl.metrics.language import Switching, measure_switching
from ollm_rl.metrics.rates import (
    degeneracy,
    degeneracy_rate,
    detect_language,
    language_switching_rate,
    switches_language,
    switches_per_1000_words,
)
from tests.places import ROOT

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
def test_the_language_of_short_solutions_is_detected(text: str, language: str | None) -> None:
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
def test_a_switch_of_language_is_detected_and_names_and_numbers_are_not_switches(
    prompt: str, completion: str, switches: bool
) -> None:
    assert switches_language(prompt, completion) == switches


def test_one_foreign_word_in_twenty_is_a_switch_and_fewer_are_not() -> None:
    nine = "Then he buys seven more apples at the market. "
    assert measure_switching(ENGLISH_PROMPT, nine * 6 + "So it is 19. La respuesta es 19.") == Switching(60, 3, 1)
    assert switches_language(ENGLISH_PROMPT, nine * 6 + "So it is 19. La respuesta es 19.")
    assert not switches_language(ENGLISH_PROMPT, nine * 6 + "So he has got 19. La respuesta es 19.")  # 3 of 61


@pytest.mark.parametrize(
    ("completion", "words", "foreign", "switches"),
    [
        ("La respuesta es 7.", 3, 3, 1),
        ("Tom has apples. Le quedan siete manzanas. He has seven apples left. La respuesta es 7.", 15, 7, 3),
        # Two characters count as a word in Chinese, four in Thai.
        ("The apples are 7 and the rest is eaten. 一共有十九个苹果", 12, 4, 1),
        ("The apples are 7 and the rest is eaten. คำตอบคือ", 10, 2, 1),
        ("He adds.\n```\nfor manzanas in la_casa: respuesta = es\n```\nThe answer is 7.", 5, 0, 0),
        (r"So \(\cos x\) is 7 and arcsin y log z is 8.", 4, 0, 0),
        ("12 + 7 = 19", 0, 0, 0),
    ],
)
def test_words_and_switches_are_counted_without_code_and_mathematics(
    completion: str, words: int, foreign: int, switches: int
) -> None:
    assert measure_switching(ENGLISH_PROMPT, completion) == Switching(words, foreign, switches)


def test_a_sentence_that_changes_its_language_in_the_middle_is_cut_there() -> None:
    mixed = "First he adds seven apples to the others, luego le quedan diecinueve manzanas en la casa"
    assert measure_switching(ENGLISH_PROMPT, mixed) == Switching(16, 8, 1)


def test_a_prompt_that_may_be_in_several_languages_is_in_that_of_the_completion() -> None:
    prompt = (
        r"Convert $e^{11 \pi i/2}$ to rectangular form."  # "rectangular" and "convert" are words of other languages too
    )
    assert not switches_language(prompt, "We have that it is -i.")


def test_the_switching_rates_are_of_completions_and_of_words() -> None:
    prompts = [ENGLISH_PROMPT] * 3 + [SPANISH_PROMPT]
    completions = ["The answer is 14.", "The answer is 14. La respuesta es 14.", "14", "La respuesta es 14."]
    assert language_switching_rate(prompts, completions) == 0.25
    assert switches_per_1000_words(prompts, completions) == pytest.approx(1000 / 12)
    assert switches_per_1000_words([ENGLISH_PROMPT], ["14"]) == 0


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


def test_a_loop_at_the_end_always_counts_and_one_within_counts_if_it_covers_half() -> None:
    sound = "First Tom buys seven more apples at the market and then he gives five of them to a friend of his"
    assert degeneracy(f"{sound} so 1 2 1 2 1 2") == set()  # three times only
    assert degeneracy(f"{sound} so 1 2 1 2 1 2 1 2") == {"loop"}
    assert degeneracy(f"{sound} so 12 7 12 7 12 7 12 7 1") == {"loop"}  # cut off within the last number
    assert degeneracy(f"{sound} so 1 1 1 1 1 1 1") == set()  # 7 tokens
    assert degeneracy(f"{sound} so 1 2 1 2 1 2 1 2 1 2 1 2 of all.") == set()  # 12 of 37 tokens
    assert degeneracy(f"{sound} so" + " 1 2" * 13 + " of all.") == {"loop"}  # 26 of 51


def test_sentences_that_are_repeated_in_any_order_are_a_loop() -> None:
    first, second = "Then we add seven to the twelve, so it is 19.", "Now let us check this once more with care."
    once = "Tom has twelve apples at first and then his friend at the market gives him seven more of the red ones."
    # 12 + 10 tokens; the sentences after the first two are in sequences of eight that occurred before.
    mixed = [first, second, first, first, second, second, first, second, first, first]
    assert degeneracy(" ".join(mixed)) == {"loop"}
    assert degeneracy(" ".join([once, first, second, first, second])) == set()


NOISE = "xq vfzk jwpq tgbx qzkd hvwj kcqx bnzf pwqv jxkz mqvd zrtk wjhq fxcb qkvz gjpw xzqd"


@pytest.mark.parametrize(
    "text",
    [
        NOISE,  # 17 words, 49 letter pairs
        f"{ENGLISH} {NOISE}",
        "Thсумe合計 sคำuммаm 合isคำ 7",  # Latin, Cyrillic, Chinese and Thai within words
        "".join(chr(code) for code in np.random.default_rng(0).integers(0x4E00, 0x9FFF, 150)),  # deflate finds nothing
    ],
)
def test_texts_without_words_are_gibberish(text: str) -> None:
    assert "gibberish" in degeneracy(f"{text} 7")


def test_short_texts_and_formulas_are_not_gibberish() -> None:
    assert degeneracy("xq vfzk jwpq tgbx qzkd hvwj 7") == set()  # 18 letter pairs
    assert degeneracy(f"{NOISE.upper()} 7") == set()  # possibly the points of a figure
    assert (
        degeneracy(r"\begin{aligned} x^3 \sqrt{\zeta} &\ne \frac{pq}{mkv} \\ \alpha + \beta &= 7 \end{aligned}")
        == set()
    )
    assert degeneracy("Σ α β γ дом 合計 の answer is 7") == set()  # Greek counts as formula


def test_the_strangeness_of_letters_is_that_of_the_strangest_stretch_and_counts_a_word_once() -> None:
    assert 3 < letter_bits(ENGLISH_PROMPT + SPANISH) < 4
    assert letter_bits(NOISE) > 7
    assert letter_bits(f"{ENGLISH_PROMPT} {NOISE} {SPANISH}") > 6
    assert letter_bits("strengths " * 50) == 0  # 8 pairs are too few to judge
    assert letter_bits(f"{ENGLISH_PROMPT} {SPANISH} " + "xkq " * 50) < 4


def test_perplexity_detects_gibberish_where_log_probabilities_are_known() -> None:
    # exp(3.1) = 22.2 and exp(2.9) = 18.2
    assert degeneracy(ENGLISH, log_probs=[-3.1] * 10) == {"gibberish"}
    assert degeneracy(ENGLISH, log_probs=[-2.9] * 10) == set()
    assert not is_improbable([-9.0] * 9)  # too few tokens


def test_a_completion_cut_off_at_the_limit_has_no_end() -> None:
    assert degeneracy("12 + 7 = 19", finished=False) == {"no_end"}
    assert degeneracy("", finished=False) == {"no_end", "empty"}


def test_the_degeneracy_rate_counts_a_completion_once() -> None:
    assert degeneracy_rate(["", "The answer is 3.", "It is 4.", "5"], [False, True, False, True]) == 0.5


@pytest.mark.parametrize("rate", [language_switching_rate, switches_per_1000_words, degeneracy_rate])
def test_rates_ask_for_pairs(rate) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"\(1\) and .* \(2\) must be of one length"):
        rate(["a"], ["b", "c"])
    with pytest.raises(ValueError, match="not empty"):
        rate([], [])


def test_the_examples_of_the_documentation_hold() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    imports, examples = snippet.split("\n\n")
    names: dict[str, object] = {}
    exec(imports, names)
    for line in examples.strip().splitlines():
        call, _, expected = line.partition("  # ")
        assert eval(call, names) == eval(expected)
    rows = re.findall(r"^\| (How many.*?) \| (.*?) \| (\d+), (\d+), (\d+) \| (yes|no) \|$", text, re.MULTILINE)
    assert len(rows) == 3
    for prompt, completion, words, foreign, switches, verdict in rows:
        assert measure_switching(prompt, completion) == Switching(int(words), int(foreign), int(switches))
        assert switches_language(prompt, completion) == (verdict == "yes")
    flagged = dict(re.findall(r"^\| `(\w+)` \| .* \| `(.*)` \|$", text, re.MULTILINE))
    assert flagged.keys() == {"loop", "no_end", "gibberish", "no_answer"}
    for flag, example in flagged.items():
        assert degeneracy(example, finished=flag != "no_end") == {flag}
