r"""Where a solution states its final answer, found in time linear in the text, whatever it holds."""

import re

_BRACES = re.compile(r"\\f?box(?:ed)?\s*\{|\\[\\{}]|[{}]")
_HASHES = re.compile(r"####[ \t]*(\S.*)")
_PHRASE = re.compile(
    r"(?:\b(?:the|la)[ ]+(?:final[ ]+|correct[ ]+)?(?:answer|respuesta)(?:[ ]+final)?[ ]+(?:is|es)\b"
    r"(?:[ ]+(?:therefore|thus|equal to|approximately))?"
    r"|\b(?:answer|respuesta)(?:[ ]+final)?[ *]*:)[\s:*]*(?=\S)",
    re.IGNORECASE,
)
_PHRASE_AFTER = re.compile(r"(\S{1,40}) is the (?:final |correct )?answer\b", re.IGNORECASE)
_AFTERTHOUGHT = re.compile(r",?[ ](?:because|since|which|where|porque)\b|,[ ](?:so|as|but)\b")
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")

# Groups of three after commas, after points with a decimal comma at the end, or after spaces that cannot be broken
# (a plain space may stand between two numbers). Repeats are bounded where the pattern can fail after them.
_NUMBER = (
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d{1,3}(?:\.\d{3}){1,9},\d+|\d{1,3}(?:[\u00a0\u202f]\d{3})+(?:[.,]\d+)?"
    r"|\d+(?:\.\d+)?|\.\d+)"
)
_SIGNED = rf"(?:(?<![\w)\]}}])[-−])?{_NUMBER}(?:/\d+)?%?"
_ANY_NUMBER = re.compile(_SIGNED)
_SENTENCES = re.compile(r"(?<=\D[.!?])\s+|(?<=\d[.!?])\s+(?=[A-Z])")
_REASON = re.compile(r"[ ](?:because|since)\b")
_ROUNDED = re.compile(rf"\bround(?:s|ed|ing)?[ ](?:it[ ])?(?:up|down|off|to)\b[^\d\n]{{0,20}}?({_SIGNED})")
_RESULT = re.compile(
    rf"=\s{{0,3}}[$€£]?\s?([-−]?(?:\d{{1,3}}(?:[ ]\d{{3}})+(?![\d-])|{_NUMBER})(?:/\d+)?%?)"
    rf"|({_SIGNED})\s?=\s?[A-Za-z][.]?$",
    re.MULTILINE,
)


def extract_answer(text: str) -> tuple[str, str] | None:
    r"""Find the final answer of a solution.

    The first of these that occurs: the last ``\boxed{x}`` or ``\fbox{x}``; the last ``#### x``; the last "the answer
    is x", "Answer: x", "la respuesta es x" or "Respuesta: x", up to the end of its sentence or to a reason in it;
    "x is the answer"; the final number.

    The final number is the last one of the last sentence that has one. What people write makes four exceptions: a
    reason ("because ...") is no answer; a sentence that rounds means what it rounds to; one with an equation means its
    result (in "20 = A" the left side); and one that repeats the result of the last equation before it means that
    result, if its last number is an old one ("35/7 = 5. She works 5 hours on each of the 7 days").

    Returns:
        The answer and the method's name, ``boxed``, ``hashes``, ``phrase`` or ``last_number``, or None.
    """
    if "box" in text and (boxed := _last_box(text)):
        return boxed, "boxed"
    if "####" in text and (hashes := _HASHES.findall(text)):
        return hashes[-1].strip(), "hashes"
    if phrase := _last_phrase(text):
        return phrase, "phrase"
    number = _final_number(text)
    return None if number is None else (number, "last_number")


def boxes(text: str) -> list[str]:
    """Contents of all closed boxes that stand in no other box, in their order."""
    found: list[tuple[int, int]] = []
    for start, end in _box_spans(text):
        if not found or start > found[-1][1]:
            found.append((start, end))
    return [text[start:end].strip() for start, end in found]


def _last_box(text: str) -> str | None:
    """Content of the closed box that opens last and is not empty."""
    contents = (text[start:end].strip() for start, end in reversed(_box_spans(text)))
    return next((content for content in contents if content), None)


def _box_spans(text: str) -> list[tuple[int, int]]:
    """First and one past the last character of every closed box's content, by one pass over the braces."""
    open_braces: list[tuple[int, bool]] = []
    found = []
    for match in _BRACES.finditer(text):
        token = match.group()
        if token.endswith("{") and token != r"\{":
            open_braces.append((match.end(), token != "{"))
        elif token == "}" and open_braces:
            start, is_box = open_braces.pop()
            if is_box:
                found.append((start, match.start()))
    return sorted(found)


def _last_phrase(text: str) -> str | None:
    lowered = text.lower()  # many times faster to search than the pattern, which few texts need then
    if "answer" not in lowered and "respuesta" not in lowered:
        return None
    end = None
    for match in _PHRASE.finditer(text):
        end = match.end()
    if end is None:
        found = _PHRASE_AFTER.findall(text)
        return str(found[-1]) if found else None
    line = text[end:].split("\n", 1)[0]
    sentence = _SENTENCE_END.split(line, maxsplit=1)[0]
    return _AFTERTHOUGHT.split(sentence, maxsplit=1)[0].strip(" \t*") or None


def _final_number(text: str) -> str | None:
    line = next((line for line in reversed(text.splitlines()) if _ANY_NUMBER.search(line)), None)
    if line is None:
        return None
    sentence = next(part for part in reversed(_SENTENCES.split(line)) if _ANY_NUMBER.search(part))
    if reason := _REASON.search(sentence, sentence.rfind("=") + 1):
        claim = sentence[: reason.start()]
        sentence = claim if _ANY_NUMBER.search(claim) else sentence
    numbers: list[str] = _ANY_NUMBER.findall(sentence)
    if rounded := _ROUNDED.findall(sentence):
        return str(rounded[-1])
    if result := _last_result(sentence):
        return result
    before = text[: text.rfind(sentence)]
    result = _last_result(before)
    is_repeated = result in numbers and re.search(rf"(?<!\d){re.escape(numbers[-1])}(?!\d)", before)
    return result if is_repeated else numbers[-1]


def _last_result(text: str) -> str | None:
    """Right side of the last equation, if there is one."""
    results = _RESULT.findall(text) if "=" in text else []
    return (results[-1][0] or results[-1][1]) if results else None
