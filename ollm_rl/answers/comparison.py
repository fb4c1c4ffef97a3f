r"""Compares two short answers exactly: as text, numbers, ratios, times, and lists of numbers.

- No tolerance: ``0.333`` is not 1/3, and ``3.14159`` is not pi. `ollm_rl.answers.quantities` says how numbers are read.
- In an answer, ``2,5`` and ``0,75`` are decimals if the gold answer is one number; else they are two numbers.
- A unit, currency or percent sign that only one side has is ignored, and 25 % is also 0.25. Two known units must be
  equal, or both be possible parts of one quantity (1 h 15 min is 75 min).
- An equation counts as the value that it states (`ollm_rl.answers.equations`). If it has to be solved, it is wrong.
- The letter of a choice is enough: ``(B) 12`` is B, and also 12. A modulus that only one side has is ignored.
- Lists without brackets and sets have no order; tuples and intervals have one, and their brackets count. A list is also
  the tuple of the same order.
"""

import re
from collections.abc import Iterable
from itertools import pairwise

from ollm_rl.answers.equations import is_name, is_system, sides, value_of
from ollm_rl.answers.forms import compare_forms
from ollm_rl.answers.inequalities import are_joined_alike, as_set
from ollm_rl.answers.quantities import Quantity, read_quantity
from ollm_rl.answers.units import currency, share, split_unit

_LONE_COMMA = re.compile(r"(?<![\d.,])(\d+),(\d{1,2}|\d{4,})(?![\d.,])")
_TEXT = re.compile(r"\\text ?\{((?:[^{}]|\{[^{}]*\})*)\}")
_LABEL = re.compile(r"^(?!(?i:option|choice|answer) [A-J]:)(?:\\text ?\{ ?)?[A-Za-z][A-Za-z ]+: ?\}? ?(?=\S)")
_MODULUS = re.compile(r" ?(?:\\pmod ?(?:\{[^{}]*\}|\w)|\( ?\\?b?mod(?:ulo)?(?![a-z])[^()]*\)|\\b?mod(?![a-z])[^()]*)$")
_RESIDUE = re.compile(r"(-?\d{1,50}) ?\(?(?:\\pmod|\\?b?mod) ?\{? ?(\d{1,50})[ })]*")
_CHOICE = re.compile(
    r"(?i:(?:the|la) )?(?:(?i:option|choice|answer|opción) )?"
    r"(?:\(([A-J])\)|([A-J])(?:\)|[.:](?= )| -(?= [^\W\d_]{2})|$))\s*(.*)",
    re.DOTALL,
)
_ANOTHER_CHOICE = re.compile(r"(?:and|or|,)(?![a-z])|\(?[A-J]\)")
_WORDS = re.compile(r"[^\W\d_](?:[^\W\d_]|[' -]){3,}|[A-Z]")
_CAPITALS = re.compile("[A-Z]{3,}")  # HHT is not HTH, though math-verify takes both for one product
_YES_OR_NO = re.compile("(yes|no)[,.;:]", re.IGNORECASE)
_CHOICES = re.compile(r"(?:\([A-J]\)|[A-J])(?:(?:[,;]|,? and| ?\\?&)? ?(?:\([A-J]\)|[A-J]))+")
_ARTICLE = re.compile(r"^(?:an?|the) (?=[^\W\d_]{3})", re.IGNORECASE)
_WORD_LIST = re.compile(r"[^\W\d_]{2,}(?:,? and |, )[^\W\d_]{2,}(?:(?:,? and |, )[^\W\d_]{2,})*")
_INTEGERS = re.compile(r"(?<=.),? ?\(?([a-z]) ?\\in ?(?:\\mathbb\{? ?)?Z ?\}? ?\)?$")
_CONSTANT = re.compile(r"\+ ?[cC]$")
_FUNCTION_OF_X = re.compile(r"[a-zA-Z] ?\(x\)")
_POINT = re.compile(r"^[A-Z] ?(?=\([^()]*,[^()]*\)$)")  # P(1, 2)
_ORDERED = re.compile(r"(?:[A-Z]|\\(?:vec|mathbb) ?\{? ?\w ?\}?) ?\\times ?(?:[A-Z]|\\(?:vec|mathbb))(?![a-z])")
_COLUMN = re.compile(r"^\\begin\{[pb]matrix\}([^&]*)\\end\{[pb]matrix\}$")
_SUM = re.compile(r"[A-Za-z] ?[-+] ?[A-Za-z]")
_NAMED_TUPLE = re.compile(r"\(([A-Za-z](?:, ?[A-Za-z])+)\) ?= ?\(([^()]+)\)")
_NAME = re.compile(r"[A-Za-z](?:_ ?(?:\w|\{\w+\})|'*(?:\^\{?-1\}?)? ?\([^()=]*\))?")  # x, a_1, f(2)
_ROMAN = re.compile(r"(?=..)(?:x{0,3}(?:ix|iv|v?i{0,3})|X{0,3}(?:IX|IV|V?I{0,3}))")  # IX is not XI, though AB may be BA
_SEQUENCE = re.compile(r"(\\\{|[\[(])?(.*?)(\\\}|[\])])?", re.DOTALL)
_SEPARATOR = re.compile(r"[,;]? ?\b(?:and|or)\b|[,;]| \\?& |(?<=[\d}]) (?:y|o|et|ou|und|oder|和|或) (?=[-\d\\])")
_ALTERNATIVES = re.compile(r"(?<=[\d}]) (?:or|and) (?=[-\d\\])")
_GOES_ON = re.compile(r"\.\.\.|\\[lc]?dots(?![a-z])")
_BOTH = r"\pm"
_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|leq|geq|lt|gt|ne|neq)(?![a-z])")
_APART = re.compile(r"(?<![\d./^{\\])\d+ \d+(?![\d./])")  # two numbers, which math-verify adds
_PRICES = re.compile(r"^\$(?=[^/]*/ ?\$)|(?<=/) ?\$(?=\d)")  # their signs in a quotient, $30/$5; loops keep SymPy busy
_SPARE_SPACE = re.compile(r"(?<!\d) | (?!\d)")


def compare(answer: str, gold: str) -> bool | None:
    """Compare two cleaned answers exactly, as text, numbers or lists of numbers; None if this does not decide.

    Args:
        answer: An answer after `clean`.
        gold: The reference answer after `clean`.
    """
    if answer == gold:
        return True
    answer, gold = reduce(answer, gold)
    parts = sides(answer)
    if len(parts) > 1 and "=" not in gold and (not is_system(parts) or _SUM.search(parts[0])):
        return False  # "x + 5 = 7" does not say 7
    names, gold_names = _values_by_name(answer).keys(), _values_by_name(gold).keys()
    if (names and gold_names and names != gold_names) or (_ROMAN.fullmatch(answer) and _ROMAN.fullmatch(gold)):
        return False
    verdict = _compare_letters(answer, gold)
    if verdict is not None:
        return verdict
    units = split_unit(answer)[1], split_unit(gold)[1]
    answer, gold = (_PRICES.sub("", _without_wrappers(text)) for text in (answer, gold))
    if _same_text(answer, gold):
        return True
    if gold.casefold() in ("yes", "no") and (said := _YES_OR_NO.match(answer)):
        return said[1].casefold() == gold.casefold()
    if _ORDERED.search(answer) or _ORDERED.search(gold):  # A x B is not B x A, and no product of numbers
        return False
    wanted = read_quantity(gold)
    found = read_quantity(answer)
    if not are_joined_alike(answer, gold):
        return False
    if (wanted and _INEQUALITY.search(answer)) or bool(_GOES_ON.search(answer)) != bool(_GOES_ON.search(gold)):
        return False
    if wanted and not found:
        found = read_quantity(_LONE_COMMA.sub(r"\1.\2", answer))
    if wanted and found:
        return _same_quantity(found, wanted)
    verdict = compare_forms(answer, gold)
    if verdict is not None:
        return verdict
    if _WORD_LIST.fullmatch(answer) and _WORD_LIST.fullmatch(gold):
        return _same_words(answer, gold)
    if (_WORDS.fullmatch(answer) or found) and (_WORDS.fullmatch(gold) or wanted):
        return False
    if (all(units) and units[0] != units[1]) or _APART.search(answer):
        return False
    return _compare_sequences(answer, gold)


def _compare_letters(answer: str, gold: str) -> bool | None:
    """Compare letters of choices, names of several capitals, and residues; None for others."""
    if re.fullmatch("[A-J]", gold) and answer.strip("()") == gold.lower():  # a choice
        return True
    capitals = sorted(_CAPITALS.findall(answer)), sorted(_CAPITALS.findall(gold))
    if all(capitals) and capitals[0] != capitals[1]:
        return False
    residues = [_RESIDUE.fullmatch(text) for text in (answer, gold)]
    if residues[0] and residues[1]:
        modulus = int(residues[1][2])
        return residues[0][2] == residues[1][2] and (int(residues[0][1]) - int(residues[1][1])) % (modulus or 1) == 0
    if _CHOICES.fullmatch(answer) and _CHOICES.fullmatch(gold):
        return sorted(re.findall("[A-J]", answer)) == sorted(re.findall("[A-J]", gold))
    return None


def reduce(answer: str, gold: str) -> tuple[str, str]:
    """Two cleaned answers without what only one of them has: labels, a choice's letter or text, names, a modulus."""
    answer, gold = as_set(answer), as_set(gold)
    answer, gold = _reduce_choices(_LABEL.sub("", answer), _LABEL.sub("", gold))
    if bool(_MODULUS.search(answer)) != bool(_MODULUS.search(gold)):
        answer, gold = _MODULUS.sub("", answer), _MODULUS.sub("", gold)
    named = [found[1] for text in (answer, gold) if (found := _INTEGERS.search(text))]
    if len(named) == 2 and not re.search(rf"(?<![A-Za-z\\]){named[1]}", answer):  # n instead of k
        answer = re.sub(rf"(?<![A-Za-z\\]){named[0]}", named[1], answer)
    names = {found[1] for text in (answer, gold) if (found := _INTEGERS.search(text))}
    if len(names) == 1:  # "k \in Z", which only one of them may say
        answer, gold = _INTEGERS.sub("", answer), _INTEGERS.sub("", gold)
    if _CONSTANT.search(answer) and _CONSTANT.search(gold):  # of integration
        answer, gold = _CONSTANT.sub("+ C", answer), _CONSTANT.sub("+ C", gold)
    answer, gold = _as_tuples(answer, gold)
    parts, gold_parts = sides(answer), sides(gold)
    are_named = min(len(parts), len(gold_parts)) > 1 and is_name(parts[0]) and is_name(gold_parts[0])
    are_graphs = sorted(_FUNCTION_OF_X.sub("f", part[0]) for part in (parts, gold_parts)) == ["f", "y"]
    if are_named and not are_graphs and not _same_text(parts[0], gold_parts[0]):
        return answer, gold
    value, gold_value = value_of(parts), value_of(gold_parts)
    if value is not None and gold_value is not None:
        answer, gold = value, gold_value
    return _both_signs(answer, gold), _both_signs(gold, answer)


def _both_signs(text: str, other: str) -> str:
    r"""Both values of ``\frac{1 \pm \sqrt{5}}{2}``, if the other text is a list."""
    if text.count(_BOTH) != 1 or _BOTH in other or "," in text or len(_SEPARATOR.split(other)) != 2:
        return text
    return f"{text.replace(_BOTH, '+')}, {text.replace(_BOTH, '-')}"


def _as_tuples(answer: str, gold: str) -> tuple[str, str]:
    """Two answers as tuples where one has values by name and the other has them too, or is a tuple or list."""
    if answer[:1] == "(" or gold[:1] == "(":
        answer, gold = (_COLUMN.sub(_tuple_of_column, _POINT.sub("", text)) for text in (answer, gold))
    values, gold_values = _values_by_name(answer), _values_by_name(gold)
    if values and values.keys() == gold_values.keys():
        return _tuple_of(values, values), _tuple_of(gold_values, values)
    named = values or gold_values
    brackets, items = _sequence(gold if values else answer)
    if not named and len(items) > 1:
        gold_brackets, gold_items = _sequence(gold)
        if {brackets, gold_brackets} == {"", "()"} and len(items) == len(gold_items):  # (3, 1) is not 1, 3
            return f"({', '.join(items)})", f"({', '.join(gold_items)})"
    if (values and gold_values) or not 1 < len(named) == len(items) or brackets not in ("", "()"):
        return answer, gold
    if not brackets and all(name.startswith("x_") for name in named):  # roots
        roots = ", ".join(named.values())
        return (roots, gold) if values else (answer, roots)
    as_tuple = f"({', '.join(items)})"
    names = sorted(named)  # x, y as in the alphabet; other names as they are given
    follow = all(len(after) == 1 and ord(after) - ord(before[0]) == 1 for before, after in pairwise(names))
    named_tuple = _tuple_of(named, names if follow else named)
    return (named_tuple, as_tuple) if values else (as_tuple, named_tuple)


def _tuple_of_column(column: re.Match[str]) -> str:
    return "(" + ", ".join(row.strip() for row in column[1].split(r"\\") if row.strip()) + ")"


def _tuple_of(values: dict[str, str], names: Iterable[str]) -> str:
    return f"({', '.join(values[name] for name in names)})"


def _values_by_name(text: str) -> dict[str, str]:
    """Values by name, of ``x = 1, y = 2``, ``(x, y) = (1, 2)`` or ``f(2) = 3``; empty if it is none of these."""
    if "=" not in text:
        return {}
    text = _TEXT.sub(r" \1 ", text).strip()
    if match := _NAMED_TUPLE.fullmatch(text):
        names, items = ([part.strip() for part in group.split(",")] for group in match.groups())
        return dict(zip(names, items, strict=True)) if len(names) == len(items) else {}
    parts = [sides(item.strip()) for item in _SEPARATOR.split(text)]
    are_values = all(len(part) == 2 and _NAME.fullmatch(part[0]) for part in parts)
    values = {part[0].replace(" ", ""): part[1] for part in parts} if are_values else {}
    is_value = len(parts) == 1 and "(" in parts[0][0]  # math-verify would not compare the arguments of f(2) = 3
    return values if len(values) > 1 or is_value else {}


def _reduce_choices(answer: str, gold: str) -> tuple[str, str]:
    """The part that two answers, which may be choices, both have: the letter, or else the text."""
    (letter, text), (gold_letter, gold_text) = _choice(answer), _choice(gold)
    if letter and gold_letter and (letter != gold_letter or not text or not gold_text):
        return letter, gold_letter
    return text or answer, gold_text or gold


def _choice(answer: str) -> tuple[str, str]:
    """Letter and text of a choice, such as ``(B) 12``; a missing one is empty."""
    match = _CHOICE.fullmatch(_TEXT.sub(r" \1 ", answer).strip() if "\\" in answer else answer)
    if match is None or _ANOTHER_CHOICE.match(match[3]):
        return "", ""
    return match[1] or match[2], match[3]


def _without_wrappers(text: str) -> str:
    r"""Remove ``\text{}``, and round brackets around a single item."""
    if "\\" in text:
        text = " ".join(_TEXT.sub(r" \1 ", text).split())
    if text[:1] == "(" and text[-1:] == ")" and not re.search(r"[(),]", text[1:-1]):
        text = text[1:-1].strip()
    return text


def _same_text(answer: str, gold: str) -> bool:
    answer, gold = (_SPARE_SPACE.sub("", _ARTICLE.sub("", text)) for text in (answer, gold))
    # "sunday" is Sunday, but the variable X is not x, and AB is not ab.
    is_word = gold.isalpha() and (len(gold) > 2 or gold.casefold() == "no")
    return answer == gold or (is_word and answer.casefold() == gold.casefold())


def _same_words(answer: str, gold: str) -> bool:
    """Whether two lists have the same words. Two words with "and" have no order, but three may be a ranking."""
    words, gold_words = (re.split(",? and |, ", text.casefold()) for text in (answer, gold))
    is_pair = len(words) == 2 and " and " in answer and " and " in gold
    return sorted(words) == sorted(gold_words) if is_pair else words == gold_words


def _same_quantity(one: Quantity, other: Quantity) -> bool:
    for smaller, larger in ((one, other), (other, one)):
        if ratio := share(larger.unit, smaller.unit):
            return smaller.value * ratio == larger.value
    if one.unit and other.unit and not (one.unit == other.unit or _is_rate_of(one, other) or _is_rate_of(other, one)):
        return False
    if one.value == other.value:
        return True
    percents = [quantity.value / {"%": 100, "‰": 1000}.get(quantity.unit, 1) for quantity in (one, other)]
    return percents[0] == percents[1]


def _is_rate_of(one: Quantity, other: Quantity) -> bool:
    """Whether one is an amount of money per unit, and the other the amount without the unit: "$12 per hour" and $12."""
    return one.unit.startswith(f"{other.unit}/") and currency(other.unit) is not None


def _compare_sequences(answer: str, gold: str) -> bool | None:
    """Compare sets, lists, tuples and intervals of numbers; of other items only the brackets."""
    brackets, items = _sequence(answer)
    gold_brackets, gold_items = _sequence(gold)
    if max(len(items), len(gold_items)) < 2:
        return None
    if _ALTERNATIVES.search(answer) and len(gold_items) == 1:
        return False  # "28 or 28_9" does not say 28
    if brackets and gold_brackets and brackets != gold_brackets:
        return False if len(items) == len(gold_items) else None
    found, wanted = ([read_quantity(item) for item in part] for part in (items, gold_items))
    values = [quantity for quantity in found if quantity]
    gold_values = [quantity for quantity in wanted if quantity]
    if not values or not gold_values or len(values) < len(items) or len(gold_values) < len(gold_items):
        return None
    if {brackets, gold_brackets} <= {"", "{}"}:
        if brackets or gold_brackets or len(values) != len(gold_values):  # else 1, 1, 2 is not 1, 2, 2
            values, gold_values = list(set(values)), list(set(gold_values))
        values, gold_values = sorted(values), sorted(gold_values)
    elif brackets != gold_brackets:
        return None
    return len(values) == len(gold_values) and all(map(_same_quantity, values, gold_values))


def _sequence(text: str) -> tuple[str, list[str]]:
    """Brackets, such as ``(]``, and comma-separated items; no items if the commas may mean something else."""
    match = _SEQUENCE.fullmatch(text)
    assert match is not None
    opening, inner, closing = match.groups("")
    brackets = (opening + closing).replace("\\", "")
    if re.search(r"[()\[\]]|\\[{}]", inner) or (not brackets and re.search(r"\d,\d{3}(?!\d)", inner)):
        return brackets, []
    parts = [sides(item.strip()) for item in _SEPARATOR.split(inner)]
    if brackets == "[]" and len(parts) > 2:  # no interval
        brackets = "()"
    names = {part[0] for part in parts if len(part) > 1}
    if len(names) > 1 and len(parts) > 1:
        return brackets, []  # a system
    return brackets, [value for part in parts if (value := value_of(part)) is not None]
