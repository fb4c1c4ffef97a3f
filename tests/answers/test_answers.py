"""Where an answer stands in a solution; expectations are read off the texts."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ollm_rl.answers.comparison import compare
from ollm_rl.answers.extraction import boxes, extract_answer
from ollm_rl.answers.quantities import clean, read_quantity, split_unit

# What the patterns look for, so that random texts are not all equally dull.
PIECES = [
    r"\boxed{", r"\boxed", "{", "}", "\\", r"\{", r"\}", "####", "#", " ", "\n", "the answer is ", "Answer:",
    " is the answer", "respuesta", " because ", "rounds up to ", "=", "-", "−", "1", "12", "1,234", "1.234,5", ".", ",",
    "/", "%", "$", r"\frac", r"\frac{1}{2}", r"\text{", "cm", "^", "_", "x", "(", ")", "[", "]", "½", "³", "٤", "e9",
    r"\times 10^{", ":", "million", "\u00a0", "\x00", "\ud800",
]  # fmt: skip
TEXTS = st.one_of(
    st.text(st.characters(codec=None), max_size=80), st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"So \boxed{1} or rather \boxed{\frac{1}{\sqrt{2}}}.", (r"\frac{1}{\sqrt{2}}", "boxed")),
        (r"\boxed{\left\{1, 2\right\}}", (r"\left\{1, 2\right\}", "boxed")),
        (r"It is \boxed{7}. Check: \boxed{8", ("7", "boxed")),
        (r"\boxed{\text{about } \boxed{5}}", ("5", "boxed")),
        (r"\fbox{12} sheep, \boxed{}", ("12", "boxed")),
        (r"#### 5 but \boxed{4}", ("4", "boxed")),
        ("The answer is 3.\n#### 1,200", ("1,200", "hashes")),
        ("The answer is 3. No, the answer is 3.5.", ("3.5", "phrase")),
        ("The correct answer is (B)", ("(B)", "phrase")),
        ("La respuesta es 14 manzanas. 2 + 2 = 4", ("14 manzanas", "phrase")),
        ("12 + 7 = 19. RESPUESTA: 19.", ("19", "phrase")),
        ("**Answer:** 5", ("5", "phrase")),
        ("The answer is 5, which is what 8 - 3 leaves.", ("5", "phrase")),
        ("The final answer is:\n$x$", ("$x$", "phrase")),
        ("This confirms that 80 is the answer, not 120", ("80", "phrase")),
        ("x = 12, so 48 - 50 = -2.", ("-2", "last_number")),
        ("There are 20-6 left.", ("6", "last_number")),
        ("It costs $1,234.50", ("1,234.50", "last_number")),
        ("Das kostet 1.234,50 im Jahr", ("1.234,50", "last_number")),
        ("Es kommen 12\u00a0500", ("12\u00a0500", "last_number")),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_the_most_explicit_answer_is_extracted(text: str, expected: tuple[str, str] | None) -> None:
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It will take her 120/24 = 5 hours to read 120 pages.", "5"),
        ("35/7 = 5 hours\nLawrence would work 5 hours each of the 7 days in a week.", "5"),
        ("15*5 = 75 cans\nIf 1 can has 3 balls, then 75 cans would have 225 balls", "225"),
        ("768/50 = 15.36 minutes, which rounds down to 15 minutes", "15"),
        ("He pays $10,000 because he averages 30 points.", "10,000"),
        ("She has 4 dollars because 20 - 16 = 4", "4"),
        ("So we divide by 5, 100/5 = 5A/5 or 20 = A.", "20"),
        ("In 7 rounds he spent 50 seconds.", "50"),
    ],
)
def test_the_final_number_is_the_one_that_the_last_sentence_is_about(text: str, answer: str) -> None:
    assert extract_answer(text) == (answer, "last_number")


def test_boxes_are_all_closed_ones_that_stand_in_no_other() -> None:
    assert boxes(r"\boxed{1} \boxed{\frac{1}{2}} \boxed{a\boxed{b}} \boxed{open") == [
        "1",
        r"\frac{1}{2}",
        r"a\boxed{b}",
    ]


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, other=TEXTS)
@example(text="1" * 5000, other="1" * 5000)
@example(text="1" * 5000 + "/3", other="10^{-999}")
def test_no_text_makes_extraction_or_comparison_raise(text: str, other: str) -> None:
    found = extract_answer(text)
    assert found is None or found[0]
    boxes(text)
    for part in (text, found[0] if found else ""):
        assert compare(clean(part), clean(part)) is True
        assert compare(clean(part), clean(other)) in (True, False, None)
        read_quantity(clean(part))
        split_unit(clean(part))
