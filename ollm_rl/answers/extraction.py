"""Finds the final answer of a solution, in time linear in the text."""

import re
from itertools import pairwise
from typing import NamedTuple

from ollm_rl.answers.last_expression import DENIAL, DENIED_AFTER, last_expression
from ollm_rl.answers.phrases import stated_answer, statement
from ollm_rl.answers.prose import read_prose

MOST_READ = 10_000  # characters at the end of a text that are searched for an answer in words
MOST_BETWEEN = 70  # characters between two boxes of one answer

_BRACES = re.compile(r"\\f?box(?:ed)?\s*\{|\\[\\{}]|[{}]")
_BARE_BOX = re.compile(r"\\boxed[ \t]*([^\s{}\\$.,;A-Za-z]+|[A-Za-z](?![A-Za-z]))")  # \boxed 9
_NOT = re.compile(r"(?:\bnot|\bcannot|n't)(?: be| equal)?[\s$]*$")
_LABEL = re.compile(r"[A-Za-z][\w{}()\\]{0,12}\s*=\s*$")
_PART = re.compile(r"[\s.,;*]*(?:\(|\bpart \(?|\n)?(?:(?:[b-h]|ii|iii|iv|v)[:)]|[2-9][.:)])[\s:*$]*", re.IGNORECASE)
_MATHEMATICS_ENDS = re.compile(r"\\[\\,;()\[\]]|\\q?quad|[\s$.,;&]")
_RATIO = re.compile(r"[ $]*:[ $]*")
# After one of these words, an equation or a line, the next box replaces the answer before it.
_GOES_ON = re.compile(
    r"[=:\n]|[.!?]\s|\b(?:so|then|thus|hence|therefore|which|giv(?:es|ing)|finally|answer|rather|instead|wait|no|not|but)\b"
)
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*(\S.*)")
_FIGURE = re.compile(r"[*_ ]*(?![*_ ]*\d+ ?[.):][ \t])[-−+$€£¥(\\]*[\d\\.$]")  # but "1. Add" is a heading
_END = re.compile(r"(?:</s>|<\|[\w-]+\|>)\s*$")  # of a sequence, as tokenisers write it
_NEXT = re.compile(r"\n\n(?:Question|Problem|Q|Human|User):")  # a text that goes on with another problem
_CALCULATION = re.compile(r"<<[^<>\n]*>>")  # of GSM8K: 48/2 = <<48/2=24>>24
_SPACES = re.compile(r"[ \t]{2,}")
_TAG, _THOUGHT = "<answer>", "</think>"


def extract_answer(text: str) -> tuple[str, str] | None:
    r"""Find the final answer of a solution. Text after ``</think>`` is searched first.

    A text that goes on with another problem ("Question:" after a blank line) ends there. The answer is the first of
    these that occurs:

    - the last ``\boxed{x}`` or ``\fbox{x}``; if the last boxes are parts of one answer, all of them with commas;
    - the last ``<answer>x</answer>``;
    - the last ``#### x`` that is not a heading;
    - the last "the answer is x", "Answer: x" or "x is the answer", in English, Spanish, French, German or Chinese
      (`ollm_rl.answers.phrases`);
    - the last expression of the final statement (`ollm_rl.answers.last_expression`).

    Returns:
        The answer and the method: ``boxed``, ``hashes``, ``phrase`` (also for tags) or ``last_number``. None without
        an answer.
    """
    while text.endswith(">") and (token := _END.search(text[-MOST_BETWEEN:])):
        text = text[: len(text) - len(token.group())]
    if "\n\n" in text and (following := _NEXT.search(text)):
        found = extract_answer(text[: following.start()])
        if found and found[1] != "last_number":
            return found
    if _THOUGHT in text and (found := extract_answer(text.rpartition(_THOUGHT)[2])):
        return found
    if "box" in text and (boxed := _boxed(text)) is not None:
        return (boxed, "boxed") if boxed else None  # a box that is cut off states nothing
    if _TAG in text and (tagged := _tagged(text)):
        return tagged, "phrase"
    if "####" in text and (marked := _marked(text)):
        return marked, "hashes"
    end = _SPACES.sub(" ", _CALCULATION.sub("", text[-MOST_READ:]))
    if phrase := stated_answer(end):
        return phrase, "phrase"
    expression = last_expression(end)
    return None if expression is None else (expression, "last_number")


class _Box(NamedTuple):
    position: int  # of the command
    start: int  # of the content
    end: int


def boxes(text: str) -> list[str]:
    """Contents of all closed boxes that are not inside another box, in their order."""
    return [text[box.start : box.end].strip() for box in _outer(_closed_boxes(text)[0])]


def _boxed(text: str) -> str | None:
    """Content of the last box that is not empty, or of the last boxes if they are one answer.

    If no box is closed: the content of an open box at the end of the text, empty if other braces are open too. None
    without a box.
    """
    closed, content = _closed_boxes(text)
    closed = [box for box in closed if text[box.start : box.end].strip()]
    if not closed:
        bare = _BARE_BOX.findall(text)
        return bare[-1] if bare else content
    last = closed[-1]
    if _NOT.search(text, max(0, last.position - DENIAL), last.position) or DENIED_AFTER.match(text, last.end + 1):
        return ""
    parts = [last]
    outer = _outer(closed)
    for box in reversed(outer[: outer.index(last)] if last in outer else []):
        if not _are_one_answer(text[box.end + 1 : parts[-1].position]):
            break
        parts.append(box)
    contents = dict.fromkeys(text[box.start : box.end].strip() for box in reversed(parts))
    if all(_RATIO.fullmatch(text, box.end + 1, after.position) for after, box in pairwise(parts)) and len(parts) > 1:
        return ":".join(text[box.start : box.end].strip() for box in reversed(parts))
    return ", ".join(contents)


def _closed_boxes(text: str) -> tuple[list[_Box], str | None]:
    """All closed boxes in order, and the content of a box that stays open, empty if other braces stay open too."""
    open_braces: list[tuple[int, int, bool]] = []  # start of the command and of the content, is a box
    found = []
    for match in _BRACES.finditer(text):
        token = match.group()
        if token.endswith("{") and token != r"\{":
            open_braces.append((match.start(), match.end(), token != "{"))
        elif token == "}" and open_braces:
            position, start, is_box = open_braces.pop()
            if is_box:
                found.append(_Box(position, start, match.start()))
    still_open = [start for _, start, is_box in open_braces if is_box]
    if not still_open:
        return sorted(found), None
    content = text[still_open[0] :].strip(" \n$.")
    return sorted(found), content if len(open_braces) == 1 and "\n" not in content else ""


def _outer(found: list[_Box]) -> list[_Box]:
    outer: list[_Box] = []
    for box in found:
        if not outer or box.position > outer[-1].end:
            outer.append(box)
    return outer


def _are_one_answer(between: str) -> bool:
    """Whether boxes with this text between them are parts of one answer: "$ and $y =", but not ", so $x ="."""
    if len(between) > MOST_BETWEEN:
        return False
    if _RATIO.fullmatch(between):
        return True
    between = _LABEL.sub("", _PART.sub(",", between))
    return not _MATHEMATICS_ENDS.sub("", between) or not _GOES_ON.search(between)


def _tagged(text: str) -> str | None:
    """The answer between the last tags, or after the last opening tag if it is never closed."""
    inner = text[text.rfind(_TAG) + len(_TAG) :].partition("</answer>")[0].strip()[-MOST_READ:]
    if answer := stated_answer(inner):
        return answer
    return (last_expression(inner) if "\n" in inner else statement(read_prose(inner), 0, 0)) or None


def _marked(text: str) -> str | None:
    """The answer after the last ``####`` that is not a heading: a number, or anything in the last line."""
    last_line = len(text.rstrip())
    for match in reversed(list(_HASHES.finditer(text))):
        line = match[1][:MOST_READ]
        if line.isdecimal():
            return line
        if _FIGURE.match(line) or match.end() >= last_line:
            return stated_answer(line) or statement(read_prose(line), 0, 0)
    return None
