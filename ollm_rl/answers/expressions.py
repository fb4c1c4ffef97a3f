"""Finds whole expressions in prose: numbers, formulas and signs, with everything that belongs to them.

They are 2 1/4 in "2 1/4 miles", "3:30 p.m.", 3 or 4 in "3 or 4 of them", and "2 hours and 30 minutes".
"""

import re
from typing import NamedTuple

from ollm_rl.answers.equations import is_name, sides
from ollm_rl.answers.forms import MONTH
from ollm_rl.answers.number_words import PART, SCALES
from ollm_rl.answers.prose import FORMULA, Prose, content
from ollm_rl.answers.quantities import read_quantity

_NUMBER = (
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d{1,3}(?:\.\d{3}){1,9},\d+|\d{1,2}(?:,\d{2}){1,9},\d{3}(?![\d,])"
    r"|\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?![\d-])(?:[.,]\d+)?|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+)"
)
_BRACES = r"\{(?:[^{}\n]|\{(?:[^{}\n]|\{[^{}\n]*+\})*+\})*+\}"
_RUN = re.compile(
    r"(?:(?:"
    r"[(\[{](?:(?![^\W\d_]{2})[^()\[\]{}\n]){0,80}[)\]}]"  # commas belong to the expression only in brackets
    rf"|{FORMULA}+|(?<![A-Za-z])(?<!\d )(?!\d+-[A-Za-z]{{2}}){_NUMBER}(?:(?:st|nd|rd|th)\b)?|(?<=\d )\d+/\d+"
    r"|(?<![^\W\d_])(?<!['’])[A-Za-z](?![^\W\d_₀-₉]|['’])|(?:pi|sqrt|ln|log|sin|cos|tan|mod)(?![A-Za-z])"
    rf"|\\[A-Za-z]+(?:\[[^\[\]\n]{{0,20}}\])?(?:{_BRACES})*+|\\[{{}}%$,;! ]|(?<!\d )[$£]|[$£](?!\d)"
    r"|[-−+*/^=<>≤≥≈≡±×·⋅÷⁄∕:!%°√_()\[\]{}|–—¢€¥₹⁰¹²³⁴-⁹₀-₉½¼¾⅐-⅞π∞]"
    rf")(?:[ \t](?!(?<={FORMULA}[ \t]){FORMULA}))?)++"  # of two formulas in a row each is an expression
)
_LEADING = re.compile(
    rf"(?:(?<=[a-z])(?:\^\{{?-?\d\}}?|[²³])|[\s)\]}}=*/^:!%|≈≡·×÷°_,]|[-=]>|(?<=[a-z]{{2}})>|[-–—+](?=\s)|\\[,;! ]"
    rf"|(?:[A-Za-z] )+(?=[\d${FORMULA}]))+"  # the power of a unit ("cm^2") belongs to nothing
)
_TRAILING = re.compile(rf"(?:[\s(\[{{=*/^:+\-−–—<>≈≡·×÷_$¢€£]|\\[,;! ]|(?<=[\d{FORMULA}]) (?![gmlLshA])[A-Za-z])$")
_OPERATOR = re.compile(r"[-+*/^·×÷–]")
_LABEL = re.compile(r"\b(?:Step|Case|Part|Week|Day|Month|Year|Hour|Round|Stage|Question|Problem|Method|Figure) $")
# "By (2)", "equation (3)", "[1]"
_REFERENCE = re.compile(r"\(\d{1,2}\)|\[\d{1,2}\]")
_REFERRING = re.compile(r"\b(?:equations?|eq\.|by|from|in|see|using|and) $", re.IGNORECASE)
_LABEL_END = re.compile(r"\d+\s?[:).]")
_UNFINISHED = re.compile(r"\{\s*\}|[-+*/^=<>]\s*$")
_CONTENT = re.compile(r"[+*/^\-\d]|\\(?:d?frac|sqrt|pi|infty)")
_INEQUALITY = re.compile(r"[<>≤≥]|\\(?:l|g)(?:eq?|t)?(?![a-z])|\\in(?![a-z])")
_BOUNDED = re.compile(r"[$\\( ]*([A-Za-z]) ?(?:[<>≤≥≠]|\\(?:[lg](?:t|e|eq|eqslant)|ne|neq)(?![a-z]))")
_JOINED = re.compile(
    r",? ?(?:and|or|to|by|times|plus|minus|over|past|of|out of|in every|in|more than|less than|y|o|et|ou|und|oder|bis|à"
    r"|и|или|或|和|到)? ?| minutes (?:past|to) | \(?(?:in )?base[- ]"
    r"| (?!than|followed|multiplied|divided|equal|close)[a-z]{1,12} (?:by|to|x|×) ",
    re.IGNORECASE,
)
_BELONGS_AFTER = re.compile(
    rf" ?(?:{'|'.join(SCALES)})(?![a-z])| ?per ?cent\b| ?%| and {PART}| ?[ap]\.?m\b\.?| o'clock\b"
    rf"|,? (?:of )?{MONTH}\b(?:,? \d{{4}}\b)?",
    re.IGNORECASE,
)
_BELONGS_BEFORE = re.compile(
    rf"[\s(]((?:\d{{1,2}}(?:st|nd|rd|th)? (?:of )?)?{MONTH}\.? (?:the )?|(?:between|from|entre|zwischen|von) "
    r"|minus |negative |(?:half|quarter) (?:past|to) "
    r"|(?:one|two|three|four|five|six|seven|eight|nine|ten) (?:in|out of|or|and|to) )$",
    re.IGNORECASE,
)
_SHORT_NAME = re.compile(r"[A-Za-z](?:_?\{?\w\}?)?")
_UNIT_BETWEEN = re.compile(r" ?[^\W\d_]{1,20},?(?: and)? ")  # " hours and "
_UNIT = re.compile(r" ?[^\W\d_]+")


class Span(NamedTuple):
    """Start and end of an expression in a text."""

    start: int
    end: int


def find_expressions(prose: Prose, start: int, end: int) -> list[Span]:
    """Expressions with a value in a part of a text; a name, such as ``$x$``, has none."""
    found = []
    for match in _RUN.finditer(prose.masked, start, end):
        is_labelled = _LABEL.search(prose.before(match.start()))
        label = _LABEL_END.match(prose.masked, match.start(), match.end()) if is_labelled else None
        span = _trimmed(prose.masked, label.end() if label else match.start(), match.end())
        if span.start < span.end and not _is_reference(prose, span) and _has_value(prose.text[slice(*span)]):
            found.append(span)
    return found


def whole_expression(prose: Prose, spans: list[Span], index: int, end: int) -> Span:
    """Extend an expression of a sentence to what belongs to it: scale, a.m. or p.m., month, other parts of a list.

    Args:
        prose: The text.
        spans: The sentence's expressions from `find_expressions`.
        index: Index of the expression.
        end: End of the sentence.
    """
    first = last = spans[index]
    for following in spans[index + 1 :]:
        if not _are_one(prose, last, following):
            break
        last = following
    if after := _BELONGS_AFTER.match(prose.masked, last.end, end):
        last = Span(last.start, after.end())
    for earlier in reversed(spans[:index]):
        if not _are_one(prose, earlier, first):
            if not _UNIT_BETWEEN.fullmatch(prose.masked, earlier.end, first.start):
                break
            unit = _UNIT.match(prose.masked, last.end, end)
            ends = [last.end, unit.end()] if unit else [last.end]
            ends = [stop for stop in ends if _is_quantity(prose, earlier.start, stop)]
            if not ends:
                break
            last = Span(last.start, ends[-1])
        first = earlier
    before = _BELONGS_BEFORE.search(" " + prose.before(first.start))
    return Span(first.start - len(before[1]) if before else first.start, last.end)


def _trimmed(masked: str, start: int, end: int) -> Span:
    """A run of expressions and signs without signs at its ends that connect nothing."""
    leading = _LEADING.match(masked, start, end)
    if leading and _OPERATOR.search(leading.group()) and (equals := masked.rfind("=", start, end)) >= 0:
        start = equals  # "6 apples / 2 = 3": the words before are an operand
        leading = _LEADING.match(masked, start, end)
    start = leading.end() if leading else start
    while start < end and (trailing := _TRAILING.search(masked, max(start, end - 3), end)):
        end = trailing.start()
    for opening, closing in ("()", "[]", "{}"):
        part = masked[start:end]
        if part.count(opening) > part.count(closing) and part[0] == opening:
            start += 1
        elif part.count(closing) > part.count(opening) and part[-1] == closing:
            end -= 1
    return Span(start, end)


def _is_reference(prose: Prose, span: Span) -> bool:
    """Whether a number in brackets names an equation or a source."""
    if prose.masked[span.start] not in "([" or not _REFERENCE.fullmatch(prose.masked, *span):
        return False
    return prose.masked[span.start] == "[" or _REFERRING.search(prose.before(span.start)) is not None


def _has_value(expression: str) -> bool:
    if expression[0] not in "$\\":
        return any(sign.isnumeric() for sign in expression) or "\\" in expression
    inner = content(expression)
    if _UNFINISHED.search(inner) or inner[:1] in ("^", "_"):  # the power of a unit: "12 cm$^2$"
        return False
    return bool(_CONTENT.search(inner)) or inner.startswith(r"\text") or not is_name(inner)


def _are_one(prose: Prose, one: Span, other: Span) -> bool:
    """Whether two neighbours are parts of one expression. Two equations are, if they have one name, or short names."""
    if not _JOINED.fullmatch(prose.masked, one.end, other.start):
        return False
    texts = [prose.text[slice(*span)] for span in (one, other)]
    bounded = [found[1] for text in texts if (found := _BOUNDED.match(text))]
    if len(bounded) == 2 and bounded[0] == bounded[1]:  # "$x < 2$ or $x > 3$"
        return True
    names = [sides(text.strip("$ "))[:-1] for text in texts]  # "$x = 2$ or $x = 3$"
    if all(len(part) == 1 and _SHORT_NAME.fullmatch(part[0]) for part in names):
        return True
    if "=" in prose.masked[one.start : other.end]:
        return False
    return names[0][:1] == names[1][:1] and not any(_INEQUALITY.search(text) for text in texts)


def _is_quantity(prose: Prose, start: int, end: int) -> bool:
    """Whether a text is one quantity: 2 hours and 30 minutes."""
    return read_quantity(" ".join(prose.text[start:end].split())) is not None
