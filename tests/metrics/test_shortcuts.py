"""Caches, and searches that are left out, change no result; expectations are worked from the definitions."""

from collections.abc import Iterator

import pytest

from ollm_rl.metrics import detection, language, sentences
from ollm_rl.metrics.degenerate import degeneracy
from ollm_rl.metrics.language import Switching, measure_switching
from ollm_rl.metrics.loops import is_loop
from ollm_rl.metrics.sentences import latin_words, split_pieces

PROMPT = "Tom has 12 apples. He buys 7 more and gives 5 away. How many apples are left?"
SPANISH = "Le quedan siete manzanas."
CACHES = (detection._confidences_of, language._prompt_pieces, sentences._script)


@pytest.fixture
def empty_caches() -> Iterator[None]:
    """Caches that are empty, and empty again after the test."""
    for cache in CACHES:
        cache.cache_clear()
    yield
    for cache in CACHES:
        cache.cache_clear()


class Asked(list[str]):
    """A detector that keeps what it was asked and knows no language."""

    def compute_language_confidence_values(self, words: str) -> list[object]:
        self.append(words)
        return []


@pytest.fixture
def asked(empty_caches: None, monkeypatch: pytest.MonkeyPatch) -> Asked:
    detector = Asked()
    monkeypatch.setattr(detection, "_detector", lambda with_others: detector)
    return detector


# Words, those in another language, and switches, which start at the prompt.
COUNTS = {
    "Tom has apples.": Switching(3, 0, 0),
    f"Tom has apples. {SPANISH}": Switching(7, 4, 1),
    f"{SPANISH} Tom has apples.": Switching(7, 4, 2),
    f"Tom has apples. {SPANISH} He buys more apples.": Switching(11, 4, 2),
    f"{SPANISH} Tom.": Switching(5, 5, 1),  # a name counts as the sentence before it
    f"Tom. {SPANISH}": Switching(5, 5, 1),  # at the start, as the next clear sentence
    "Then there is a basket, luego le quedan diecinueve manzanas en la casa.": Switching(12, 6, 1),  # its half
}


def test_what_is_measured_does_not_depend_on_what_was_measured_before(empty_caches: None) -> None:
    for _ in range(2):
        assert {text: measure_switching(PROMPT, text) for text in COUNTS} == COUNTS
    for text in reversed(COUNTS):
        for cache in CACHES:
            cache.cache_clear()
        assert measure_switching(PROMPT, text) == COUNTS[text]


def test_words_of_the_prompt_in_another_language_are_no_switch() -> None:
    # Less than a fifth of the prompt is Spanish, so it does not ask for an answer in Spanish.
    prompt = f"{PROMPT} {PROMPT} How do you say in plain English at the market: la casa es grande y el gato es negro?"
    quoted = "La casa es grande y el gato es negro."  # "y" is a variable
    assert measure_switching(prompt, quoted) == Switching(8, 0, 0)
    assert measure_switching(prompt, f"El perro es blanco. {quoted}") == Switching(12, 12, 1)


def test_the_detector_is_asked_once_about_a_text_and_its_first_200_characters(asked: Asked) -> None:
    for end in ("", " one", " two"):
        assert detection.confidences_of("ab " * 67 + end) == {}
    assert asked == [("ab " * 67)[:200]]


def test_the_detector_is_not_asked_about_words_of_the_prompt(asked: Asked) -> None:
    measure_switching(PROMPT, "Tom has apples. How many are left?")
    assert asked == ["Tom has apples He buys more and gives away How many apples are left"]


def test_caches_are_bounded(asked: Asked) -> None:
    for number in range(20_000):
        detection.confidences_of(str(number))
    assert len(asked) == 20_000
    assert detection._confidences_of.cache_info().currsize == 16_384
    for number in range(300):
        measure_switching(f"How many are {number} and 7?", "Seven.")
    assert language._prompt_pieces.cache_info().currsize == 256
    latin_words(" ".join(words_of(5_000)))
    assert sentences._script.cache_info().currsize == 4_096


def words_of(count: int, first: str = "w") -> list[str]:
    """Different words, which begin with a letter."""
    return [first + "".join("abcdefghij"[int(digit)] for digit in str(number)) for number in range(count)]


@pytest.mark.parametrize("period", [2, 3, 4, 20, 33])
def test_a_sequence_of_any_length_is_a_loop_at_its_fourth_time(period: int) -> None:
    start, unit = words_of(37, "s"), words_of(period)
    assert not is_loop(" ".join(start + unit * 3))
    assert is_loop(" ".join(start + unit * 4))
    assert is_loop(" ".join(unit * 6 + words_of(6 * period, "e")))  # half of the text, and at least 12 words
    assert not is_loop(" ".join(unit * 6 + words_of(6 * period + 1, "e")))


def test_three_new_words_of_the_last_sixty_are_few_enough_for_a_loop_and_four_are_not() -> None:
    one, other = words_of(19, "a"), words_of(19, "b")
    twice = one + other + other + one
    assert is_loop(" ".join([*twice, *one, "x", *other, "y", *one, "z"]))  # 57 of 60 are 95 %
    assert not is_loop(" ".join([*twice, *one, "x", *other, "y", *one, "z", "v"]))


@pytest.mark.parametrize("unit", ["q", "8", "ha", "lai", "hala", "啊", "🙂", "\ud83d"])
def test_a_character_or_syllable_is_a_loop_wherever_it_is_repeated_32_times(unit: str) -> None:
    around = " ".join(words_of(40))  # so that signs, which are words, do not cover half of the text
    for before, after in (("", ""), ("", f" {around}"), (f"{around} ", f" {around}")):
        assert is_loop(before + unit * 32 + after)
    assert not is_loop(f"{around} {unit * 31} {around}")


def test_words_are_runs_of_letters_with_signs_and_apostrophes() -> None:
    text = "It's Ana’s 3rd café_au lait ’tis हिन्दी ๑๒ กำ abc123def x' y’ ２x"
    words = [word for piece in split_pieces(text) for word in piece.words]
    # Without the symbols "x" and "y", and "rd", two letters without a vowel.
    assert words == ["It's", "Ana’s", "café", "au", "lait", "tis", "हिन्दी", "กำ", "abc", "def"]


def test_a_text_with_a_number_has_an_answer_whatever_else_it_states() -> None:
    assert "no_answer" not in degeneracy("We cannot say whether $=$ holds for 7.")
    assert "no_answer" in degeneracy("We cannot say whether it holds.")
