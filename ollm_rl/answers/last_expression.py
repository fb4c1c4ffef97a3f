"""Finds the last expression of the final statement, for solutions that do not say which number is their answer."""

import re

from ollm_rl.answers.equations import value_in_prose
from ollm_rl.answers.expressions import Span, find_expressions, whole_expression
from ollm_rl.answers.prose import FORMULA, Prose, content, read_prose
from ollm_rl.answers.quantities import read_quantity

DENIAL = 32  # characters before an expression that may deny it
MOST_BARE = 60  # characters of a text that may consist of only an answer

_CHOICE = re.compile(
    r"(?:(?:So|Thus|Hence|Therefore),? )?"
    r"((?:(?:[Oo]ption|[Cc]hoice) )?\(?[A-J]\)?|(?:\([A-J]\)|[A-J][.)]) [^.,;=\n]+)"
)
_CONCLUSION = re.compile(
    r"\b(?:so(?! that)|thus|therefore|hence|then|making|meaning|which (?:means|is(?! an? )))\b", re.IGNORECASE
)
_PREMISE = re.compile(r"(?:since|because|if|as|when|for|given)\b[^,\n]*,", re.IGNORECASE)
_REASON = re.compile(
    r"(?<![\w(])(?:because|since|porque|parce que|weil|where|as|with|when|if|or (?:about|approximately))\b"
)
_ASIDE = re.compile(
    r"\(.*\)[.!]?$|(?:Note|Notice|Remark|Check|Verification|Explanation|To (?:check|verify)|Recall)\b", re.DOTALL
)
_VALUE_OF_X = re.compile(r"[\\$( ]*[A-Za-z] ?=")
_BRACKET = re.compile(r"\((?=[^()\n]*[a-z]{3})[^()\n]*\)")
_NOTES = ("Note:", "Remark:")  # apply to all text after them
_STATES_NOTHING = re.compile(
    r"(?:is|are|was|were|does|do|did|can|could|will|would|should|what|how|which|who|why|when|where)\b[^\n]*\?$"
    r"|[^\n]*\b(?:(?:cannot|can't|unable to|hard to) (?:determine|decide|say|tell)|not (?:sure|certain)|don't know)"
    r" (?:whether|if|which)\b[^\n]*$"
    r"|(?:(?:first|then|next|now|finally),? )?(?:(?:we|let us|let's) )?"
    r"(?:divide|multiply|subtract|add|substitute|plug|(?<!we )see)\b"
    rf"(?!.*\b(?:get|gives?|giving|obtain|yields?|find|have|so|is|are|equals?|leaves?|leaving)\b)[^\n:={FORMULA}]*:?$"
    r"|(?:teile|dividiere|on divise|divisons|dividimos|разделим|умножим)\b[^\n:=]*$|(?:两边|两式)[^\n:=得]*$"
    r"|(?:let(?! us\b|['’])|suppose|assume|consider)\b(?!.*\b(?:so|then|thus|hence|therefore|gives?|gets?)\b)[^\n]*$",
    re.IGNORECASE,
)
_DISPLAY_END = re.compile(r"(?:\$\$|\\\]|\\end\{[a-z*]+\}?)$")
_ROUNDED = re.compile(r"\bround(?:s|ed|ing)? (?:it )?(?:up|down|off|to)\b[^\d\n]{0,20}?$")
_COUNTED = re.compile(r"\bthere (?:is|are|was|were|will be|must be|can be)(?: [a-z]{3,}){0,2} $", re.IGNORECASE)
_TOTAL = re.compile(r"\b(?:is|are|total of)\s$")
_DENIED = re.compile(
    r"[\s(,](?:(?:not|cannot|never|neither|nor|all but|no (?:es|puede ser)|nicht|pas|не|except|without|instead of"
    r"|(?:[a-z]+er|more|less|rather) than(?: or equal to)?"
    r"|(?:is|are|be) at (?:least|most)|(?:multiple|factor|divisor|power|root|square|cube|reciprocal|factorial"
    r"|half|third|fourth|quarter|fifth|tenth) of|percent of|(?:twice|times|half) as [a-z]+ as|divisible by|per|twice"
    r"|(?:reject|discard|exclude|ignore|eliminate|contradict|rule)(?:s|d|ed|ing)?"
    r"(?: out|(?: the)? (?:root|value|solution))?|below|above"
    r"|(?:ends|begins|starts) (?:in|with)|double|triple|[a-z]+n't)"
    r"(?: (?:be|equal(?: to)?|just|simply|necessarily|always|really|exactly|have|need|the))?"
    r"|\S*\d (?:[a-z]+ )?(?:out )?of (?:the|these|those|his|her|their|its)"  # "3 of the 10 books"
    r"|\S*\d (?!out )(?:[a-z]+ ){1,2}of) $"  # "3 boxes of 10"
    r"|(?:不是|并非|不为|不等于|[大小]于) ?$"
    r"|[\s(](?:step|theorem|lemma|corollary|proposition|equation|figure|section) \(?$",
    re.IGNORECASE,
)
_TRIED = re.compile(
    r"\b(?:wrong|incorrect|first|thought|check(?:ing)?|suppose|assum(?:e|ing)|if|whether|bound|not (?:true|sure))"
    r"(?: [a-z]+){0,2} answer(?:: ?| (?:is|was|would be) )$",
    re.IGNORECASE,
)
_CUT_OFF = re.compile(r"(?:[+/^(=]|\s[-−]|\b(?:plus|minus)|[Aa]nswer(?: is| ?:))\s*$")
DENIED_AFTER = re.compile(
    r"[$\s\\)\]*]*(?:(?:, which )?\b(?:is|are)"
    r"(?:(?: not|n't) (?:(?:the|a) (?:\w+ )?(?:answer|solution|root)|correct|right|possible)"
    r"| wrong| incorrect| impossible| extraneous| rejected| too [a-z]+)|(?:cannot|can't) be"
    r"|do(?:es)?(?: not|n't) (?:work|fit|satisfy)|fails?|(?:must|can|should) be (?:excluded|rejected))\b"
    r"|[$\s)]*(?:では|じゃ)(?:な[いく]|ありません)"
)
# The name of a quantity before its equation: "the distance is $2c = 8$", but not "the equation is $2c = 8$".
_CALLED = re.compile(
    r"\b(?:the|its|whose) (?!(?:[^.]* )?(?:answers?|results?|solutions?|equations?|lines?|planes?|circles?|parabolas?"
    r"|ellipses?|graphs?|curves?|forms?|conditions?)\b)[^.]{2,60} (?:is|are|be|equals?|measures?|has measure|of)\s+$",
    re.IGNORECASE,
)
_EQUALS = re.compile(r"= {0,3}$")
_RESULT = re.compile(
    r"(?:=|\b(?:equals|gives(?: you)?)\b)\s{0,3}[$€£]?\s?([-−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?%?)"
)
_IN_WORDS = re.compile(
    r"\b(?:is|are|was|were|has|have|had|needs?|gets?|gives?|makes?|equals?|left|be)"
    r" ((?!one\b|no\b|an?\b)[a-z-]+(?: [a-z-]+){0,4})[.!]?$",
    re.IGNORECASE,
)


def last_expression(text: str) -> str | None:
    """The whole last expression (`ollm_rl.answers.expressions`) of the last sentence that has one; None without one.

    Exceptions:

    - Expressions in a premise ("Since ...,"), in a reason ("because ...") or after "not", "than" or "reject" are not
      answers, and a text that ends with an operator has none.
    - In a sentence that rounds, the answer is the rounded number. An equation comes before other expressions, a
      formula before a number outside of formulas. In "there are 3 ways for 2 people" the answer is 3.
    - If a sentence repeats the result of the last equation before it, and its last number is not new either, the
      answer is that result ("35/7 = 5. She works 5 hours on each of the 7 days").
    - In a text with formulas, a number outside of them counts only if it equals the last formula.
    - A last sentence without digits may state a number in words. A text may also consist of only an answer.
    """
    bare = text.strip(" \n*.") if len(text) <= MOST_BARE else ""
    if bare and (choice := _CHOICE.fullmatch(bare)):
        return choice[1]
    if bare and read_quantity(bare):
        return bare
    if _CUT_OFF.search(text[-MOST_BARE:]):
        return None
    prose = read_prose(text)
    start, end, spans = _last_statement(prose)
    if not spans:
        return text[start:end] or None
    spans = [span for span in spans if not is_denied(prose, span.start)]
    spans = [span for span in spans if not DENIED_AFTER.match(prose.masked, span.end)]
    if not spans:
        return None
    spans, end = _claim(prose, start, end, spans)
    span = whole_expression(prose, spans, _main_span(prose, spans), end)
    value = value_at(prose, span) or None
    is_outside = FORMULA in prose.masked and FORMULA not in prose.masked[slice(*span)]
    if is_outside and "=" not in prose.masked[start : span.end]:
        earlier = [found for found in find_expressions(prose, 0, span.start) if prose.is_formula(found.start)]
        return value if not earlier or value_at(prose, earlier[-1]) == value else None
    return value


def is_denied(prose: Prose, position: int) -> bool:
    """Whether the words before a position deny what follows, or only try it: "the first answer was"."""
    before = " " + prose.before(position)[-DENIAL:]
    return bool(_DENIED.search(before) or ("answer" in before and _TRIED.search(before)))


def value_at(prose: Prose, span: Span) -> str:
    """The value that an expression in a sentence states."""
    before, is_formula = prose.before(span.start), prose.is_formula(span.start)
    expression = prose.text[slice(*span)]
    between = prose.masked[slice(*span)].strip(f"{FORMULA} \n")  # empty for one formula
    return value_in_prose(
        content(expression) if between in ("", ":" if _DISPLAY_END.search(expression) else "") else expression,
        is_formula=is_formula,
        is_called=_CALLED.search(before) is not None,
    )


def _last_statement(prose: Prose) -> tuple[int, int, list[Span]]:
    """Start and end of the last sentence with expressions, and these expressions.

    If the last sentence states a number in words: start and end of that number, without expressions. Questions and
    assumptions are skipped; notes, sentences in brackets and sentences with only a premise are, if there are others.
    """
    masked = prose.masked
    aside: tuple[int, int, list[Span]] = (0, 0, [])
    is_last = True
    note = max(masked.rfind(word) for word in _NOTES)
    end = note if note > 0 and find_expressions(prose, 0, note) else len(masked.rstrip())
    while end > 0:
        line = masked.rfind("\n", 0, end) + 1
        while line > 0 and masked[line].islower():  # the sentence goes on from the line before
            line = masked.rfind("\n", 0, line - 1) + 1
        for start, stop in reversed(prose.sentences(line, end)):
            if spans := find_expressions(prose, start, stop):
                premise = _PREMISE.match(masked, start, stop)
                is_question = masked[stop - 1] in "?？" and "=" not in prose.text[start:stop]
                if is_question or _STATES_NOTHING.match(masked, start, stop):
                    continue
                if not _is_aside(prose, start, stop) and not (premise and spans[-1].end <= premise.end()):
                    return start, stop, spans
                aside = aside if aside[2] else (start, stop, spans)
            elif is_last and (words := _IN_WORDS.search(masked, start, stop)) and read_quantity(words[1]):
                return *words.span(1), []
            is_last = False
        end = line - 1
    return aside


def _is_aside(prose: Prose, start: int, end: int) -> bool:
    """Whether a sentence is in brackets or a note; "Notice that" with an equation may state a result."""
    aside = _ASIDE.match(prose.masked, start, end)
    return aside is not None and not (aside.group() == "Notice" and "=" in prose.text[start:end])


def _claim(prose: Prose, start: int, end: int, spans: list[Span]) -> tuple[list[Span], int]:
    """Expressions of a sentence outside its brackets, premise and reason, and the end of this part of the sentence."""
    masked = prose.masked
    if len(spans) > 1:
        asides = [match.span() for match in _BRACKET.finditer(masked, start, end)]
        spans = [span for span in spans if not any(first < span.start < last for first, last in asides)] or spans
        spans = [span for span in spans if not _is_place(prose, span)] or spans
    beginnings = [match.end() for match in _CONCLUSION.finditer(masked, start, end)][::-1]
    if premise := _PREMISE.match(masked, start, end):
        beginnings.append(premise.end())
    for beginning in beginnings:
        if concluded := [span for span in spans if span.start >= beginning]:
            spans, start = concluded, beginning
            break
    reason = _REASON.search(masked, max(start, masked.rfind("=", start, end)), end)
    claim = [span for span in spans if reason and span.end <= reason.start()]
    has_formulas = [any(prose.is_formula(span.start) for span in part) for part in (claim, spans)]
    return (claim, reason.start()) if reason and claim and has_formulas[0] == has_formulas[1] else (spans, end)


def _is_place(prose: Prose, span: Span) -> bool:
    """Whether an expression says where: "the minimum is 3 at x = 2"."""
    return prose.masked.endswith(" at ", 0, span.start) and bool(_VALUE_OF_X.match(prose.text, *span))


def _main_span(prose: Prose, spans: list[Span]) -> int:
    """Index of the expression that a sentence is about."""
    masked, indices = prose.masked, range(len(spans))
    befores = [prose.before(span.start) for span in spans]
    rounded = [index for index in indices if _ROUNDED.search(befores[index])]
    equations = [index for index in indices if "=" in masked[slice(*spans[index])] or _EQUALS.search(befores[index])]
    formulas = [index for index in indices if prose.is_formula(spans[index].start)]
    counted = [index for index in indices if _COUNTED.search(befores[index])][:1]
    totals = [index for index in formulas if "=" in prose.text[slice(*spans[index])] and _TOTAL.search(befores[index])]
    if counted and totals and totals[-1] > counted[0]:
        counted = []  # "there are 4 choices and then 3, in total $4 \cdot 3 = 12$"
    for found in (rounded, equations, counted, formulas):
        if found:
            return found[-1]
    written = [masked[slice(*span)].strip("$€£") for span in spans]
    told = masked[: spans[0].start]
    results = _RESULT.findall(told)
    repeated = [index for index in indices if results and written[index] == results[-1]]
    if repeated and re.search(rf"(?<!\d){re.escape(written[-1])}(?!\d)", told):
        return repeated[-1]
    return len(spans) - 1
