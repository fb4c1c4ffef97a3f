"""Where an answer stands in a solution; expectations are read off the texts."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ollm_rl.answers.comparison import compare
from ollm_rl.answers.extraction import boxes, extract_answer
from ollm_rl.answers.quantities import read_quantity
from ollm_rl.answers.spelling import clean
from ollm_rl.answers.units import split_unit

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
        (r"\boxed{\left\{1, 2\right\}}", (r"\left\{1, 2\right\}", "boxed")),
        (r"It is \boxed{7}. Check: \boxed{8", ("7", "boxed")),
        (r"\boxed{\text{about } \boxed{5}}", ("5", "boxed")),
        (r"\fbox{12} sheep, \boxed{}", ("12", "boxed")),
        (r"It is $\boxed 9$.", ("9", "boxed")),
        (r"#### 5 but \boxed{4}", ("4", "boxed")),
        (r"<think>\boxed{3}</think> No, the answer is 4.", ("4", "phrase")),
        ("<answer>\n7\n</answer> The answer is 8.", ("7", "phrase")),
        ("The answer is 3.\n#### 1,200", ("1,200", "hashes")),
        ("The answer is 3. No, the answer is 3.5.", ("3.5", "phrase")),
        ("The correct answer is (B)", ("(B)", "phrase")),
        ("La respuesta es 14 manzanas. 2 + 2 = 4", ("14 manzanas", "phrase")),
        ("12 + 7 = 19. RESPUESTA: 19.", ("19", "phrase")),
        ("The final answer is:\n$x$", ("$x$", "phrase")),
        ("This confirms that 80 is the answer, not 120", ("80", "phrase")),
        ("x = 12, so 48 - 50 = -2.", ("-2", "last_number")),
        ("There are 20-6 left.", ("20-6", "last_number")),
        ("It costs $1,234.50", ("$1,234.50", "last_number")),
        ("Das kostet 1.234,50 im Jahr", ("1.234,50", "last_number")),
        ("Es kommen 12\u00a0500", ("12\u00a0500", "last_number")),
        ("(C)", ("(C)", "last_number")),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_the_most_explicit_answer_is_extracted(text: str, expected: tuple[str, str] | None) -> None:
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So \boxed{1} or rather \boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}"),
        (r"First \boxed{3}. Adding 5 gives \boxed{8}.", "8"),
        (r"\boxed{8}, so again \boxed{8}", "8"),
        (r"$x = \boxed{2}$ and $y = \boxed{3}$", "2, 3"),
        (r"\boxed{2}, \boxed{3} or \boxed{5}", "2, 3, 5"),
        (r"The sides are \boxed{2} long and \boxed{3} wide.", "2, 3"),
        (r"So $\boxed{\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_boxes_of_one_answer_are_read_together_and_an_open_one_at_the_end_too(text: str, answer: str) -> None:
    assert extract_answer(text) == (answer, "boxed")


def test_a_box_that_is_cut_off_within_says_nothing() -> None:
    assert extract_answer(r"So 5 + 2 = 7 and \boxed{\frac{7}{") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 18\nThat is all.", ("18", "hashes")),
        ("6 * 3 = 18 #### **18**", ("18", "hashes")),
        ("#### x + 1", ("x + 1", "hashes")),
        ("#### Result: 18", ("Result: 18", "hashes")),
        ("#### 1. Multiply\n6 * 3 = 18", ("18", "last_number")),
        ("#### Plan\nWe multiply.\n#### Result\nThe total is 18.", ("18", "last_number")),
        ("##### 3\nSo it is 18.", ("18", "last_number")),
        ("#### Final Answer\n\n18", ("18", "phrase")),
    ],
)
def test_headings_of_markdown_are_no_markers(text: str, answer: tuple[str, str]) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 5, which is what 8 - 3 leaves.", "5"),
        ("The answer is $5.$ Note that 3 is odd.", "$5.$"),
        ("The answer is\n\\[\n\\frac{5}{6}\n\\]", "\\[\n\\frac{5}{6}\n\\]"),
        ("Final answer:\n```\n42\n```", "42"),
        ("**Answer:** 5", "5"),
        ("The answer is 5 (3 + 2).", "5"),
        ("The answer is 2 (x + 1).", "2 (x + 1)"),
        ("The answer is 5; she has 5 left.", "5"),
        ("The answer is 5, the number of ways.", "5"),
        ("The answer is 5, 6 and 7.", "5, 6 and 7"),
        ("The answer is 5 and we are done.", "5"),
        ("The answer is 5 apples and 3 pears.", "5 apples and 3 pears"),
        ("The answer is 5 - not 6.", "5"),
        ("The answer must be 5.", "5"),
        ("The answer to the first part (in cm) is simply 5.", "5"),
        ("The answer is that Tom has 5 apples.", "5"),
        ("The answer is the numerator, $5$.", "5"),
        ("Our answer is $4 + 1 = 5$ ways.", "5"),
        ("The answer is $x = 2$ and $y = 3$.", "$x = 2$ and $y = 3$"),
        ("The answer is 5. The answer is correct.", "5"),
        ("La réponse est 5, car 3 + 2 = 5.", "5"),
        ("Die richtige Antwort lautet: 5", "5"),
        ("正确答案是B。", "B"),
    ],
)
def test_a_stated_answer_ends_where_its_explanation_begins(text: str, answer: str) -> None:
    assert extract_answer(text) == (answer, "phrase")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It will take her 120/24 = 5 hours to read 120 pages.", "5"),
        ("35/7 = 5 hours\nLawrence would work 5 hours each of the 7 days in a week.", "5"),
        ("15*5 = 75 cans\nIf 1 can has 3 balls, then 75 cans would have 225 balls", "225"),
        ("768/50 = 15.36 minutes, which rounds down to 15 minutes", "15"),
        ("He pays $10,000 because he averages 30 points.", "$10,000"),
        ("She has 4 dollars because 20 - 16 = 4", "4"),
        ("So we divide by 5, 100/5 = 5A/5 or 20 = A.", "20"),
        ("In 7 rounds he spent 50 seconds.", "50"),
        ("There are 3 ways to put 4 balls into 2 boxes.", "3"),
        ("Since there are 3 boxes, we need 12 balls.", "12"),
        ("So the total is 7. (We could also use 3 cases.)", "7"),
        ("We get $x = 5$.\nNote that $y = 2$.", "5"),
        ("So $2^5 = 4 \\cdot 8 = 32$ of the 99 are good.", "32"),
        ("Thus $12 + 7 = 19$. So Tom has 19 apples.", "19"),
        ("The distance between them is $2c = 8$.", "8"),
        ("400g / 200g = 2 loaves", "2"),
        ("That makes 120 / 12 = 10 dozen.", "10"),
        ("There are twelve eggs.", "twelve eggs"),
    ],
)
def test_the_final_expression_is_the_one_that_the_last_sentence_is_about(text: str, answer: str) -> None:
    assert extract_answer(text) == (answer, "last_number")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"The probability is $\frac{1}{3}$.", r"\frac{1}{3}"),
        (r"So it is 3\frac{1}{2} hours.", r"3\frac{1}{2}"),
        ("He walks 2 1/4 miles.", "2 1/4"),
        ("The ratio is 3 : 4.", "3 : 4"),
        ("She comes at 3:30 p.m.", "3:30 p.m"),
        ("It was on July 14, 1990.", "July 14, 1990"),
        ("The remainder is 254 (mod 2008).", "254 (mod 2008)"),
        ("It lies in $(2, 7]$.", "(2, 7]"),
        ("It takes 2 hours and 30 minutes.", "2 hours and 30 minutes"),
        ("There are 3 or 4 of them.", "3 or 4"),
        ("It is between 3 and 4.", "between 3 and 4"),
        ("There were 1.5 million visitors.", "1.5 million"),
        ("It is 3.2 x 10^5 m.", "3.2 x 10^5 m"),
        ("We conclude that $x + 5 = 7$.", "x + 5 = 7"),
        ("He won 3 out of 5.", "3 out of 5"),
    ],
)
def test_the_final_expression_is_read_whole(text: str, answer: str) -> None:
    assert extract_answer(text) == (answer, "last_number")


@pytest.mark.parametrize("text", ["It is not 14.", "La respuesta no es 14.", r"As $x = 3$, the sum is $y$ of 14."])
def test_what_is_denied_and_what_no_formula_comes_to_is_no_answer(text: str) -> None:
    assert extract_answer(text) is None


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


@pytest.mark.parametrize("text", [r"6\implies AB", r"so x = 6 \implies", "x = 6 ⇒", r"Thus $x = 6 \Rightarrow$"])
def test_a_relation_after_which_nothing_follows_is_no_part_of_the_answer(text: str) -> None:
    found = extract_answer(text)
    assert found is not None and found[0] == "6"


@pytest.mark.parametrize("text", ["The answer is =", "=", r"The answer is \implies", "1 = ="])
def test_relations_without_sides_raise_nothing(text: str) -> None:
    extract_answer(text)
