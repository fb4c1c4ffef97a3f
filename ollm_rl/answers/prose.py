r"""Finds formulas and sentences in prose with mathematics.

No sentence ends inside a formula, such as at the full stop of ``$5.$``. A dollar sign that may be money, as in "$5 and
$6", is not a delimiter.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

FORMULA = "\ue000"  # replaces every character of a formula in a masked text; a private character of Unicode
NEARBY = 60  # characters before a position that may decide what an expression means

_ENVIRONMENT = r"\{((?:align(?:ed|at)?|equation|gather(?:ed)?|multline|eqnarray|split|array|cases|[pbvBV]?matrix)\*?)\}"
_DELIMITER = re.compile(rf"\\[\\$]|\\[\[\]()]|\$\$?|\\(?:begin|end){_ENVIRONMENT}|\n[ \t]*\n")
_CLOSING = {"$": "$", "$$": "$$", r"\[": r"\]", r"\(": r"\)"}
_DELIMITED = re.compile(
    rf"(?:\$\$?|\\[\[(]|\\begin{_ENVIRONMENT})?(.*?)(?:\$\$?|\\[\])]|\\end{_ENVIRONMENT})?", re.DOTALL
)
_ALIGNMENT = re.compile(
    r"\\(?:begin|end)\{(?:align(?:ed|at|edat)?|equation|gather(?:ed)?|multline|split|eqnarray)\*?(?:\}(?:\{\d+\})?|$)"
)
_ROW_END = re.compile(r"\\\\(?:\[[^\]\n]{0,10}\])?")
_DRAWING = re.compile(r"\[asy\](?:(?!\[asy\]).)*?\[/asy\]", re.DOTALL)
_FULL_STOP_WITHIN = re.compile(rf"[.!?]\s*(\$\$?|\\[\])]|\\end{_ENVIRONMENT})$")
_WORD = re.compile(r"(?<![\\{A-Za-z])[A-Za-z]{4,}(?![A-Za-z}])")  # not a command, not in braces
_FORMULA_SIGN = re.compile(r"[\\_^=<>(\[{]|\s-?[\d.]+\s+\Z")
_STOP = re.compile(r"[.!?]([)*\"”]?)\s+|[。！？]\s*")
_ABBREVIATION = re.compile(r"\.[A-Za-z]\.$|\b(?:[RM][sr]|vs|No)\.$")  # i.e., p.m., Mr., Rs.
_AFTER_NUMBER = re.compile(rf"[A-ZÀ-ÖØ-ÞЁА-Я({FORMULA}\\]")  # begins a sentence, while "2. of" does not


@dataclass(frozen=True)
class Prose:
    """A text, and the same text with FORMULA for each character of formulas and spaces for drawings."""

    text: str
    masked: str

    def is_formula(self, position: int) -> bool:
        """Whether the character at a position belongs to a formula."""
        return self.masked[position] == FORMULA

    def before(self, position: int) -> str:
        """The last NEARBY masked characters before a position."""
        return self.masked[max(0, position - NEARBY) : position]

    def sentences(self, start: int, end: int) -> list[tuple[int, int]]:
        """Start and end of every sentence in a part of the text."""
        cuts = [cut for cut in _STOP.finditer(self.masked, start, end) if self._ends_sentence(cut)]
        ends = [cut.end() - len(cut.group()) + len(cut.group().rstrip()) for cut in cuts]
        return list(zip([start, *(cut.end() for cut in cuts)], [*ends, end], strict=True))

    def sentence_end(self, start: int) -> int:
        """End of the sentence that begins at a position, at most the end of its line."""
        line_end = self.masked.find("\n", start)
        line_end = len(self.masked) if line_end < 0 else line_end
        return self.sentences(start, line_end)[0][1]

    def _ends_sentence(self, stop: re.Match[str]) -> bool:
        """Whether a full stop or the like, with the white space after it, ends a sentence."""
        position = stop.start()
        if stop[1] or stop[1] is None or position == 0:
            return True
        if self.masked[position - 1].isdecimal():
            return _AFTER_NUMBER.match(self.masked, stop.end()) is not None
        before = self.masked[max(0, position - 3) : position + 1]
        return not self.masked[position - 1].isspace() and not _ABBREVIATION.search(before)


def read_prose(text: str) -> Prose:
    r"""Find the formulas of a text, such as ``$...$``, ``\[...\]`` and ``\begin{align}...``, in one pass."""
    if "$" not in text and "\\" not in text and "[asy]" not in text:
        return Prose(text, text)
    masked = _DRAWING.sub(lambda drawing: " " * len(drawing.group()), text) if "[asy]" in text else text
    parts = []
    position = 0
    for start, end in _formulas(masked):
        ends_sentence = _FULL_STOP_WITHIN.search(masked, start, end)
        parts += [masked[position:start], FORMULA * (end - start - 1), "." if ends_sentence else FORMULA]
        position = end
    return Prose(text, "".join([*parts, masked[position:]]))


def content(formula: str) -> str:
    """A formula without its delimiters; of several rows only the last."""
    match = _DELIMITED.fullmatch(formula)
    assert match is not None  # all of it is optional
    inner = _ALIGNMENT.sub("", match[2])
    if r"\begin{" not in inner:
        inner = next((row for row in reversed(_ROW_END.split(inner)) if row.strip()), "").replace("&", " ")
    return inner.strip()


def _formulas(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of formulas. A delimiter that is not closed before a blank line begins none."""
    start, closing = 0, ""
    for match in _DELIMITER.finditer(text):
        sign, position = match.group(), match.start()
        following = sign.replace("begin", "end", 1) if sign.startswith(r"\begin") else _CLOSING.get(sign, "")
        if sign[0] == "\n":
            closing = ""
        elif sign == closing and (sign != "$" or _may_close(text, start, position)):
            yield start, match.end()
            closing = ""
        elif following and (sign != "$" or _may_open(text, position)) and closing in ("", "$", following):
            start, closing = position, following
        elif sign == closing:  # money
            closing = ""


def _may_open(text: str, position: int) -> bool:
    inner = text[position + 1 : position + 200].split("$", 1)[0]
    return not inner[:1].isspace() or _FORMULA_SIGN.search(inner) is not None


def _may_close(text: str, start: int, position: int) -> bool:
    is_spaced = text[position - 1].isspace() and not text[start + 1].isspace()
    is_money = is_spaced or text[position + 1 : position + 2].isdecimal()
    return not is_money and not _WORD.search(text, start, position)
