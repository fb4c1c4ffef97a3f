"""Numbers in every spelling, and the exact comparison of answers; expectations are worked by hand."""

from fractions import Fraction

import pytest

from ollm_rl.answers.comparison import compare
from ollm_rl.answers.quantities import read_quantity
from ollm_rl.answers.spelling import clean
from ollm_rl.answers.units import split_unit


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("1,234", 1234, ""),
        ("1.234", Fraction(1234, 1000), ""),
        ("1,234.5", Fraction(12345, 10), ""),
        ("1.234,5", Fraction(12345, 10), ""),
        ("1.234.567", 1234567, ""),
        ("1 234,5", Fraction(12345, 10), ""),
        ("1\u202f234\u202f567", 1234567, ""),
        (r"12{,}345", 12345, ""),
        ("-$5.50", Fraction(-11, 2), "$"),
        ("$-5", -5, "$"),
        ("25 €", 25, "€"),
        ("USD 40", 40, "$"),
        (r"\$2.5 million", 2_500_000, "$"),
        ("3 dozen eggs", 36, ""),
        ("12.5%", Fraction(25, 2), "%"),
        (r"60^\circ", 60, "degree"),
        (r"5 \mbox{ cm}^2", 5, "cm^2"),
        ("5 square centimeters", 5, "cm^2"),
        ("90 miles per hour", 90, "mi/h"),
        (r"\dfrac34", Fraction(3, 4), ""),
        (r"-\frac{1.5}{2}", Fraction(-3, 4), ""),
        (r"\frac{1}{-2}", Fraction(-1, 2), ""),
        ("-1 1/2", Fraction(-3, 2), ""),
        (r"2\frac{3}{4} slices", Fraction(11, 4), ""),
        ("1½", Fraction(3, 2), ""),
        (r"1.5 \times 10^{-3}", Fraction(3, 2000), ""),
        ("3 × 10⁵", 300_000, ""),
        ("2E-3", Fraction(1, 500), ""),
        ("٤٢", 42, ""),
    ],
)
def test_a_number_is_read_exactly_with_its_unit(text: str, value: Fraction | int, unit: str) -> None:
    stripped = clean(text)
    if "\\" in stripped and unit:  # what compare does before it reads
        assert compare(stripped, str(value)) is True
    else:
        assert read_quantity(stripped) == (value, unit)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1,2",
        "12 34",
        "1,23,4",
        "2 7/3",
        "1/0",
        "5m",
        "3 or 4",
        "5 squared",
        "--5",
        "7!",
        "2^3",
        "3:2",
        "1.5.2",
    ],
)
def test_what_is_no_number_is_not_read_as_one(text: str) -> None:
    assert read_quantity(clean(text)) is None


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("72.0", "72", True),
        ("0.1", "0.10000000000000000001", False),
        ("2,5", "2.5", True),
        ("2.5", "2,5", False),
        ("5 cm", "5 m", False),
        ("5 apples", "5 pears", True),
        ("25%", "0.25", True),
        ("25%", "25", True),
        ("5%", "$5", False),
        ("15 gallons * 8 pints / gallon = 120 pints", "120", True),
        ("3 = 4", "4", False),
        (r"\{3, 1, 2\}", "1, 2, 3", True),
        ("(1, 2)", "(2, 1)", False),
        ("(0, 1]", "[0, 1]", False),
        (r"\{a, b\}", "(a, b)", False),
        ("even", "odds", False),
        ("(B)", "B", True),
        ("X", "x", None),
        ("861_{12}", "861", False),
        ("05:30", "5:30", True),
        ("$30/$5", "6", True),
        ("30/ $4", "6", False),
        ("$30/$5", "$6", True),
        ("/".join(["$30"] * 40), "72", False),
        (r"\sqrt{8}", r"2\sqrt{2}", None),
        (r"4\pi \text{ cm}", r"2^2\pi \text{ m}", False),
    ],
)
def test_answers_are_compared_exactly_or_not_at_all(answer: str, gold: str, expected: bool | None) -> None:
    assert compare(clean(answer), clean(gold)) is expected


def test_a_row_break_of_a_matrix_stays_one() -> None:
    assert clean(r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}") == r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"


def test_a_variable_is_no_unit() -> None:
    assert split_unit("a + b + c") == ("a + b + c", "")
    assert split_unit(r"\sin^2 t") == (r"\sin^2 t", "")
    assert split_unit(r"4\pi \text{ cm}^2") == (r"4\pi", "cm^2")
    assert split_unit("4x feet") == ("4x", "ft")
