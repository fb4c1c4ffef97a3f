r"""Gives an answer one spelling, however LaTeX, Unicode or plain text write it."""

import re
import unicodedata
from fractions import Fraction

from ollm_rl.answers.latex import closing, rewrite_commands

_SYMBOLS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/",
        "°": r"^\circ ", "º": r"^\circ ", "∞": r"\infty ", "∅": r"\emptyset ", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "√": r"\sqrt ", "∛": r"\sqrt[3]",
        "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ",
        "≈": r"\approx ", "≡": r"\equiv ", "∠": r"\angle ", "→": r"\to ", "⇒": r"\Rightarrow ",
        "٫": ".", "٬": ",", "、": ",", "。": ".", "’": "'", "′": "'", "ˋ": "`", "“": '"', "”": '"',
    }
)  # fmt: skip
_SCRIPTS = re.compile("([⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ]+)|([₀₁₂₃₄₅₆₇₈₉₋ₙ]+)|([√∛]) ?(\\d+)")
_DELIMITERS = re.compile(
    r"\$\$([^$]*)\$\$|\$([^$]*)\$|\\\[((?:(?!\\\]).)*)\\\]|\\\(((?:(?!\\\)).)*)\\\)|\*\*(.*)\*\*|\*([^*]*)\*|`+([^`]*)`+"
    r"|\"([^\"]*)\"|'([^']*)'",
    re.DOTALL,
)
_LAST_SIGN = re.compile(r"\s*(?:(?<!\.)[.,;]|\\text\{[ .,;]*\})$")
_INLINE = re.compile(
    r"(?<!\\)\$\$?([^$]+)(?<!\\)\$\$?(?=[\s.,;]|$)|\\\(((?:(?!\\\)).)*)\\\)|\\\[((?:(?!\\\]).)*)\\\]", re.DOTALL
)
_ABOUT = re.compile(
    r"(?:(?:\\text\{ ?)?(?:exactly|only|just|both|either|about|approximately|approx\.?|roughly|around)\b(?: ?\})?"
    r"|\\(?:approx|sim|simeq|approxeq)(?![a-z])|~)"
    r"[ :]*(?=\S)|=(?!=)",
    re.IGNORECASE,
)
_SPACING = re.compile(r"(?<!\\)\\[,;:> ]|~|\\q?quad\b")
_GROUP = re.compile(r"(?:(?<=[=,])|(?<=[=,] )|(?<=\bor )|^)\{((?:[^{},]|\{[^{},]*\})*)\}(?=[ .,=]|$)")
_DROPPED = re.compile(
    r"(?<!\\)\\!|\\(?:left|right) ?\.|\\(?:left|right|[bB]ig{1,2}[lrm]?)(?![A-Za-z])|\\(?:display|text|script)style\b"
    r"|\\limits\b|\\(?:checkmark|blacksquare|qed)(?![a-z])"
    r"|\\(?:tiny|small|normalsize|[lL]arge|LARGE|huge|Huge|bf|rm|it|bfseries|itshape)(?![A-Za-z])"
)
_OVER = re.compile(r"\{? ?(\w+) ?\\(over|choose)(?![a-z]) ?(\w+) ?\}?")
_NAMES_OF_OVER = {"over": "frac", "choose": "binom"}
# Names that plain text has without a backslash.
_PLAIN_NAME = re.compile(
    r"(?<![A-Za-z\\])(pi|theta|alpha|beta|gamma|lambda|sigma|omega|arcsin|arccos|arctan|sin|cos|tan|cot|ln|log|exp|sqrt)"
    r"(?![A-Za-z])"
)
_AND_A_HALF = re.compile(r"^(\d+)( [^\W\d_]+)? (?:et demie?|y medi[ao])\b")
JOINED = re.compile(r"\$ ?(?:y|o|et|ou|und|oder|и|или|和|或) ?\$")  # "$x = 1$ y $x = 4$"
_MINUS = re.compile(r"(?:\\text\{ ?)?(?:minus|negative)(?: ?\})? (?=[\w\\$.])", re.IGNORECASE)
_LOG = re.compile(r"(?<![A-Za-z\\])log(10|2) ?(?=\()")
_LG = re.compile(r"\\lg(?![a-z])")
_VARIANT = re.compile(r"\\var(?=phi|epsilon|theta|rho|sigma|kappa)")
_DOTS = re.compile(r"\\[lc]dots(?![a-z])")
_SYSTEM = re.compile(
    r"(?:\\\{ ?)?\\begin\{(cases|array|aligned)\} ?(?:\{[lcr ]*\})?((?:(?!\\begin|\\end).)*)\\end\{\1\}(?: ?\.)?",
    re.DOTALL,
)
_REVERSED = re.compile(r"(?:^|(?<=\\cup)) ?([\[\]])([^\[\]()]*[,;][^\[\]()]*)([\[\]])(?= ?(?:\\cup|$))")  # ]2, 3[
# A factor before a fraction in brackets; math-verify takes 6(\frac{3}{4}) for a mixed number.
_FACTOR = re.compile(r"(?<=\d)(?<![_^]\d) ?(?=\((?:\\frac|\d+ ?/))")
_IN_WORDS = re.compile(
    r"(?:\\text\{ ?)?(?:(all real(?:s| numbers))|(?:there (?:is|are) )?(no solutions?)(?: exists?)?|does not exist)"
    r"(?: ?\})?",
    re.IGNORECASE,
)
_CALL = re.compile(
    r"(?<![\w\\])(?:(abs|cbrt)\(([^()]*)\)|(\d+|[a-z]) choose (\d+|[a-z])(?!\w)|(?:the )?square root of (\w+)$)"
)
_TAGS = re.compile(r"</?(?:b|strong|i|em|u)>")
_ANGLES = re.compile(r"\\langle((?:(?!\\[lr]angle).)*)\\rangle")
_PRIMES = re.compile(r"\^ ?(?:\{ ?((?:\\prime ?)+)\}|(\\prime)(?![a-z]))|(?<=[A-Za-z])\^ ?\{ ?\((\d)\) ?\}")
_TIMES = re.compile(r"(?<=\d) [xX] (?=\d)")
_HOURS_AND_MINUTES = re.compile(r"(?<![\w.])(\d+) ?h ?(\d+) ?m(?:in)?(?![\w^])")
_FEET_AND_INCHES = re.compile(r"(\d+)' ?(\d+(?:\.\d+)?)(?:\"|'')")
_SUBSCRIPT = re.compile(r"_ ?(\d+|[A-Za-z])")
_ORDINAL = re.compile(r"\^ ?\{ ?(?:\\text\{ ?)?(st|nd|rd|th) ?\}? ?\}")
_POWER = re.compile(r"(?<=[\w)\]}]) ?(?:\*\*|\^) ?(?:\((-?\w+)\)|(-?\d+(?:\.\d+)?))|(?<=[\w)\]}]) ?\*\* ?(?=[\w(\\-])")
_DOTTED = re.compile(r"\\dot\{(\d)\}(\d*)\\dot\{(\d)\}")
_REPEATING = re.compile(
    r"(?<![\d.])(\d*)\.(?:(\d*)(?:\\(?:overline|bar|dot)\{(\d{1,50})\}|\((\d{1,50})\))"
    r"|(\d*?)(\d{1,9}?)\6{2,}(?:\.\.\.|\\[lc]?dots(?![a-z])))"
)

_SIGNS = (
    ("{,}", ","), ("{.}", "."), ("{-}", "-"), (r"\$", "$"), (r"\%", "%"), (r"\|", "|"), ("{:}", ":"), (r"\colon", ":"),
    (r"\pounds ", "£"), (r"\surd", r"\sqrt"), (r"\top", "T"),
)  # fmt: skip


def clean(answer: str) -> str:
    r"""Give an answer one spelling without changing its meaning.

    Removes the delimiters of mathematics, a full stop at the end, fonts, colours, spacing and "approximately". Writes
    signs and plain names as commands, all digits as ASCII, ``\dfrac12`` as ``\frac{1}{2}``, ``2**10`` as ``2^{10}``,
    ``1{,}000`` as ``1,000``, and ``0.\overline{3}`` as ``\frac{1}{3}``.
    """
    if answer.isdecimal() and answer.isascii():  # most answers; saves time
        return answer
    text = _undelimited(answer)
    if "$" in text or r"\(" in text or r"\[" in text:
        text = _INLINE.sub(lambda match: match[1] or match[2] or match[3] or "", JOINED.sub("$, $", text))
    if not text.isascii():
        text = _ascii_signs(text)
    if "(" in text or " " in text:
        text = _LOG.sub(r"\\log_{\1}", _CALL.sub(_called, text))
    text = _TIMES.sub(r" \\times ", _PLAIN_NAME.sub(r"\\\1", text))
    if "\\" in text or "{" in text or "~" in text:
        text = _plain_commands(text)
    text = _plain_notations(text)
    text = _MINUS.sub("-", text, count=1) if _MINUS.match(text) else text
    return " ".join(_undelimited(_ABOUT.sub("", text, count=1) if _ABOUT.match(text) else text).split())


def _plain_commands(text: str) -> str:
    """The usual spelling of commands of LaTeX."""
    for command, sign in _SIGNS:
        text = text.replace(command, sign)
    text = _undelimited(rewrite_commands(_SPACING.sub(" ", _DROPPED.sub("", text))))
    text = _GROUP.sub(r"\1", text)
    text = _OVER.sub(lambda match: rf"\{_NAMES_OF_OVER[match[2]]}{{{match[1]}}}{{{match[3]}}}", text)
    text = _DOTS.sub(r"\\dots", _LG.sub(r"\\log_{10}", _VARIANT.sub(r"\\", text)).replace(r"\varnothing", r"\emptyset"))
    if r"\begin" in text:
        text = _SYSTEM.sub(_equations_of, text)
    return text


def _plain_notations(text: str) -> str:
    """The usual spelling of other signs: derivatives, lengths, indices, powers, intervals, repeating decimals."""
    if r"\prime" in text or "^{(" in text:
        text = _PRIMES.sub(lambda match: "'" * int(match[3] or match.group().count("p")), text)
    if " et dem" in text or " y med" in text:
        text = _AND_A_HALF.sub(r"\1.5\2", text)
    if "'" in text:
        text = _FEET_AND_INCHES.sub(r"\1 ft \2 in", text)
    if "h" in text:
        text = _HOURS_AND_MINUTES.sub(r"\1 h \2 min", text)
    if "<" in text:
        text = _TAGS.sub("", text)
    if r"\langle" in text:
        text = _ANGLES.sub(lambda match: f"({match[1].strip()})" if "," in match[1] else match.group(), text)
    if "(" in text:
        text = _FACTOR.sub(r" \\cdot ", text)
    if "_" in text:
        text = _SUBSCRIPT.sub(r"_{\1}", text)
    if "^" in text or "**" in text:
        text = _POWER.sub(_braced_power, _ORDINAL.sub(r"\1", text))
    if "]" in text or "[" in text:
        text = _REVERSED.sub(_round_bracket, text.strip())
    if match := _IN_WORDS.fullmatch(text):
        text = r"\mathbb{R}" if match[1] else r"\emptyset" if match[2] else "DNE"
    if "." in text:
        text = _REPEATING.sub(_repeating_decimal, _DOTTED.sub(r"\\dot{\1\2\3}", text)).replace("...", r"\dots")
    return text


def _equations_of(system: re.Match[str]) -> str:
    """The rows of a system, with commas; several without an equals sign, as of a vector, are left as they are."""
    rows = [row.replace("&=", "=").replace("& =", "=").strip(" ,;") for row in system[2].split(r"\\")]
    rows = [row for row in rows if row]
    are_equations = len(rows) == 1 or all(row.find("=") > 0 for row in rows)
    return ", ".join(rows) if are_equations and not any("&" in row for row in rows) else system.group()


def _called(match: re.Match[str]) -> str:
    name, argument, total, chosen, root = match.groups()
    if total:
        return rf"\binom{{{total}}}{{{chosen}}}"
    return f"|{argument}|" if name == "abs" else rf"\sqrt{'[3]' if name else ''}{{{argument or root}}}"


def _round_bracket(match: re.Match[str]) -> str:
    """French ``]2, 3[`` as ``(2, 3)``."""
    return ("(" if match[1] == "]" else "[") + match[2] + (")" if match[3] == "[" else "]")


def _undelimited(text: str) -> str:
    """A text without delimiters of mathematics and emphasis around it and punctuation at its end."""
    while True:  # delimiters may be nested; every round shortens the text
        inner = _LAST_SIGN.sub("", text.strip())
        if inner.endswith("\\"):  # of a spacing command
            inner = inner[:-1]
        if match := _DELIMITERS.fullmatch(inner):
            inner = next(group for group in match.groups() if group is not None)
        elif inner[:1] == "{" and closing(inner, 0) == len(inner):
            inner = inner[1:-1]
        if inner == text:
            return text
        text = inner


def _ascii_signs(text: str) -> str:
    text = _SCRIPTS.sub(_script, text)
    characters = []
    for character in text:
        if unicodedata.category(character) == "No" and "FRACTION" in unicodedata.name(character, ""):
            character = " " + unicodedata.normalize("NFKC", character)
        elif "GREEK" in (name := unicodedata.name(character, "")) and name.rpartition(" LETTER ")[2].isalpha():
            size, _, letter = name.removeprefix("GREEK ").partition(" LETTER ")
            character = "\\" + (letter.lower() if size == "SMALL" else letter.capitalize()) + " "
        characters.append(character)
    text = unicodedata.normalize("NFKC", "".join(characters)).translate(_SYMBOLS)
    return "".join(str(int(character)) if character.isdecimal() else character for character in text)


def _script(match: re.Match[str]) -> str:
    above, below, root, number = match.groups()
    if root:
        return rf"\sqrt{'[3]' if root == '∛' else ''}{{{number}}}"
    return f"{'^' if above else '_'}{{{unicodedata.normalize('NFKC', above or below).replace('−', '-')}}}"


def _braced_power(match: re.Match[str]) -> str:
    exponent = match[1] or match[2]
    return f"^{{{exponent}}}" if exponent else "^"


def _repeating_decimal(match: re.Match[str]) -> str:
    whole, fixed, line, bracket, start, block = match.groups("")
    fixed, repeated = fixed or start, line or bracket or block
    ones = 10 ** len(repeated) - 1
    value = Fraction(int(whole or 0)) + (int(fixed or 0) + Fraction(int(repeated), ones)) / 10 ** len(fixed)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
