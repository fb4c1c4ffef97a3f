"""Finds the value that an equation states: one side, if the other names it (x = 5) or computes it (2 + 3 = 5)."""

import ast
import operator
import re
from fractions import Fraction

from ollm_rl.answers.number_words import SCALES
from ollm_rl.answers.quantities import read_quantity
from ollm_rl.answers.spelling import JOINED

_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")
# Arguments of a function: f(2), P(A), P(X=3); x(x+1) is a product.
_CALL = re.compile(r"(?<=[A-Za-z'}])\((?:-?\d+(?:[./]\d+)?|[A-Z] ?= ?\d+|[^()\d]*)(?:, ?-?\d+)*\)")
_SUBSCRIPT = re.compile(r"_ ?(?:\{[^{}]*\}|\w)")
_VARIABLE = re.compile(
    r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])|\\(?:alpha|beta|gamma|theta|lambda|mu|omega|phi|angle)(?![a-z])"
)
_CONDITION = re.compile(r"\b(?:if|when|at|for|where|unless|not)[ }]+[A-Za-z]$", re.IGNORECASE)  # "if x"
_NAMED = re.compile(r"\\(?:sum|prod|int|lim|max|min|det|gcd)(?![a-z])")
_INVERSE = re.compile(r"(?<=[A-Za-z])\^ ?\{? ?-1 ?\}?(?= ?\()")
_TO_SOLVE = re.compile(r"[\d^!]|\|\s*[a-y]\s*\||\\(?:pi|infty|sqrt|emptyset|log|ln|exp)(?![a-z])")
_EQUALS = re.compile(r"(?<![<>:\\])(?<!\s!)=|\\equiv(?![a-z])")
_GROUP = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}")
_SEVERAL = re.compile(rf",(?!\d{{3}}(?!\d))|;|\b(?:and|or)\b|{JOINED.pattern}")
_TIMES = re.compile(r"(?<=[\d.)%]) ?[xX] ?(?=[$€£]?[\d.(])")
_FIGURES = re.compile(r"[-$€£ ]*\d[\d., ]*")
_COUNTED_IN = re.compile(rf"(?<=\d) ?(?:(?:{'|'.join(SCALES)}|[A-Za-z])(?![A-Za-z]))|/[a-z]+")
_UNIT_AT_END = re.compile(r"(?<=\d)([gmlLshA])$")
_LAST_RELATION = re.compile(r"≈|⇒|→|\\(?:approx|Rightarrow|implies|iff|to|Longrightarrow|therefore)(?![a-z])")
_EQUATION_END = re.compile(r" or |, |\\text\{,? ?(?:and|or) ?\}|\\q?quad")
_SUM = re.compile(r"[-\d.,+*/()$€£ ]{1,200}")
_SIGNS = str.maketrans("×÷−–", "*/--")
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def sides(text: str) -> list[str]:
    """Parts of a text between its equals signs outside of brackets; the whole text if it has none."""
    if "=" not in text and "\\equiv" not in text:
        return [text.strip()]
    depth = position = start = 0
    parts = []
    for match in _EQUALS.finditer(text):
        depth += sum((sign in "([{") - (sign in ")]}") for sign in text[position : match.start()])
        position = match.start()
        if depth == 0:
            parts.append(text[start:position].strip())
            start = match.end()
    return [*parts, text[start:].strip()]


def is_system(parts: list[str]) -> bool:
    """Whether sides belong to several equations ("x = 1, y = 2")."""
    return any(_SEVERAL.search(_GROUP.sub("", _TEXT.sub(r" \1 ", part))) for part in parts[:-1])


def value_of(parts: list[str]) -> str | None:
    """The side that states an equation's value, or the only side; None if the equation has to be solved or is wrong.

    This is the last side that is more than a name, if the first side is a name or has no variable: 5 in ``x = 5``,
    ``5 = x``, ``f(2) = 5`` and ``2 + 3 = 5``; None for ``x + 5 = 7``, ``2x = 6`` and ``3 = 4``.
    """
    if len(parts) == 1:
        return parts[0]
    value = next((part for part in reversed(parts) if not is_name(part)), parts[-1])
    is_computed = not _variables(parts[0]) and (not _variables(value) or read_quantity(value))
    if "" in parts or is_system(parts) or not (is_name(parts[0]) or is_computed):
        return None
    numbers = {number.value for part in parts if _FIGURES.fullmatch(part) and (number := read_quantity(part))}
    return value if len(numbers) < 2 else None


def value_in_prose(expression: str, *, is_formula: bool, is_called: bool) -> str:
    """The value that an expression of a sentence states: a side of its equation, or the whole expression.

    A chain of three sides states its last one, and so does an equation with a variable on the right ("8x + 4 =
    4(2x + 1)"). Words of the sentence may be operands ("6 apples / 2 = 3"), so sums outside of formulas need not be
    right.

    Args:
        expression: The expression, without delimiters if it is a formula.
        is_formula: Whether it is a formula.
        is_called: Whether the sentence names its value: "the distance is 2c = 8".
    """
    # A relation may be the last that is there ("x = 6 ⇒").
    pieces = [piece for piece in _LAST_RELATION.split(expression.replace(r"\!", "")) if piece.strip("~ =")]
    inner = pieces[-1] if pieces else expression
    parts = [part for part in sides(inner) if part.strip("~ ")] or [inner]
    if len(parts) > 1 and not is_formula:  # "400 g / 200 g = 2", "120 / 12 = 10 dozen"
        bare = sides(_COUNTED_IN.sub("", inner))
        parts = bare if bare != parts and len(bare) > 1 and _is_true_sum(bare) else parts
    value = value_of(parts)
    starts_within = inner.lstrip("~ ").startswith("=")
    is_worked_out = len(parts) > 2 or starts_within or (len(parts) > 1 and bool(_variables(parts[-1])))
    is_said = (is_worked_out or is_called) and not is_system(parts)
    if value is None and (is_said or not (is_formula or any(map(_variables, parts)))):
        value = parts[-1]
    if value is None and len(parts) > 2:  # of several equations the only one that is solved
        solved = [found for part in _EQUATION_END.split(inner) if (found := value_of(sides(part))) and found != part]
        value = solved[0] if len(solved) == 1 else None
    value = (inner if value is None else value).lstrip(" &%~").rstrip(" &~.,;\\")
    return value if is_formula else _UNIT_AT_END.sub(r" \1", value)


def is_name(text: str) -> bool:
    """Whether a side is a name: letters, words, sums and ratios of them; numbers only as subscripts or arguments."""
    if _NAMED.match(text):
        return True
    if text.startswith("-") or _CONDITION.search(text):  # "-x = 7" has to be solved
        return False
    rest = _SUBSCRIPT.sub("", _CALL.sub("", _INVERSE.sub("", _TEXT.sub("x", text))))
    return bool(re.search(r"[^\W\d_]", rest)) and not _TO_SOLVE.search(rest)


def _variables(text: str) -> set[str]:
    """Single letters of a side, except an x that means multiplication."""
    return set(_VARIABLE.findall(_TIMES.sub("*", _TEXT.sub("", text))))


def _is_true_sum(parts: list[str]) -> bool:
    """Whether sides are sums, products or quotients of numbers, and all equal."""
    values = {_computed(part) for part in parts}
    return len(values) == 1 and None not in values


def _computed(text: str) -> Fraction | None:
    text = _TIMES.sub("*", text).translate(_SIGNS)
    if not _SUM.fullmatch(text):
        return None
    try:
        return _value_of_node(ast.parse(re.sub(r"[,$€£]|(?<!\d)0+(?=\d)", "", text).strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _value_of_node(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value_of_node(operand)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS:
            return Fraction(_OPERATORS[type(sign)](_value_of_node(left), _value_of_node(right)))
    raise ValueError(ast.dump(node))
