r"""Rewrites LaTeX commands; TeX allows arguments without braces (``\frac12``, ``\frac n2``)."""

import re

MOST_NESTED = 100  # levels; deeper arguments are not rewritten

# Commands that are removed, replaced by their last argument, or replaced by \\text.
_VANISHING = ("color", "phantom", "hphantom", "vphantom", "hspace", "vspace", "label", "tag")
_COLOURED = ("textcolor", "colorbox")
_FRAMED = ("fcolorbox",)
_FONTS = (
    "underline",
    "uline",
    "boxed",
    "fbox",
    "mathbf",
    "boldsymbol",
    "bm",
    "mathit",
    "mathsf",
    "mathtt",
    "mathcal",
    "ensuremath",
)
_TEXTS = (
    "text", "mbox", "hbox", "mathrm", "operatorname", "emph",
    "textrm", "textbf", "textit", "texttt", "textsf", "textnormal",
)  # fmt: skip
_FUNCTIONS = ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "ln", "log", "exp", "gcd", "lcm")
_FRACTIONS = ("frac", "dfrac", "tfrac", "cfrac", "sfrac", "nicefrac", "binom", "dbinom", "tbinom")
_ACCENTS = ("sqrt", "overline", "bar", "dot")
_NUM_ARGUMENTS = dict.fromkeys((*_VANISHING, *_FONTS, *_TEXTS, *_ACCENTS), 1)
_NUM_ARGUMENTS |= dict.fromkeys((*_COLOURED, *_FRACTIONS), 2) | dict.fromkeys(_FRAMED, 3)
_COMMAND = re.compile(r"\\([A-Za-z]+)\*?")
_SPACE = re.compile(r"\s*")
_BRACKET = re.compile(r"\[[^\[\]]*\]")
_CLOSING = {"{": "}", "(": ")"}


def rewrite_commands(text: str, nested: int = 0) -> str:
    r"""Put every argument in braces and remove what only changes the look: fonts, colours, phantoms.

    ``\dfrac12`` becomes ``\frac{1}{2}``, ``\textcolor{red}{5}`` becomes 5, and every text ``\text{...}``.
    """
    if nested > MOST_NESTED:
        return text
    parts = []
    position = 0
    while match := _COMMAND.search(text, position):
        parts.append(text[position : match.start()])
        position = match.end()
        name = match[1]
        found = _arguments(text, position, name) if name in _NUM_ARGUMENTS else None
        if found is None:
            parts.append(match.group())
            continue
        option, arguments, position = found
        parts.append(_written(name, option, [rewrite_commands(argument, nested + 1) for argument in arguments]))
    return "".join([*parts, text[position:]])


def _written(name: str, option: str, arguments: list[str]) -> str:
    if name in _VANISHING:
        return ""
    if name in _FONTS or name in _COLOURED or name in _FRAMED:
        return arguments[-1]
    if name in _TEXTS and (function := arguments[0].strip(" \\")) in _FUNCTIONS:
        return rf"\{function} "
    if name in _TEXTS:
        return arguments[0] if name == "mathrm" and arguments[0] in ("e", "i", "d") else rf"\text{{{arguments[0]}}}"
    name = name.removeprefix("nice")
    name = name[1:] if name in _FRACTIONS and name[1:] in _FRACTIONS else name
    return rf"\{name}{option}" + "".join(f"{{{argument.strip()}}}" for argument in arguments)


def _arguments(text: str, position: int, name: str) -> tuple[str, list[str], int] | None:
    """Option in brackets, arguments, and the position after them; None if an argument is missing."""
    option = ""
    if name == "sqrt" and (match := _BRACKET.match(text, position)):
        option, position = match.group(), match.end()
    arguments = []
    for _ in range(_NUM_ARGUMENTS[name]):
        position = _end_of(_SPACE, text, position)
        if text[position : position + 1] == "{" or (name == "sqrt" and text[position : position + 1] == "("):
            end = closing(text, position)
            if end is None:
                return None
            arguments.append(text[position + 1 : end - 1])
        else:
            end = _end_of(_COMMAND, text, position) if text[position : position + 1] == "\\" else position + 1
            arguments.append(text[position:end])
        if end > len(text):
            return None
        position = end
    return option, arguments, position


def closing(text: str, position: int) -> int | None:
    """Position after the bracket that closes the one at ``position``; None if it stays open."""
    opening, close = text[position], _CLOSING[text[position]]
    depth = 0
    for index in range(position, len(text)):
        if text[index] in (opening, close) and text[index - 1 : index] != "\\":
            depth += 1 if text[index] == opening else -1
            if depth == 0:
                return index + 1
    return None


def _end_of(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return position if match is None else match.end()
