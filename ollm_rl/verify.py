r"""Whether a completion's final answer equals the gold answer, in bounded time and memory.

Text and exact fractions decide most answers at once. The rest goes to math-verify in one child process that is
killed after a time limit and replaced: some answers keep SymPy busy for ever (``5^{5^{5^{5^5}}}``), and time-outs by
signal work in the main thread only.
"""

import atexit
import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

MAX_CHARACTERS = 1000
TIME_LIMIT = 5.0  # seconds a check may take
START_LIMIT = 60.0  # seconds the child may take to import SymPy
MEMORY_LIMIT = 2 * 1024**3  # bytes of address space of the child

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_BRACES = re.compile(r"\\boxed\s*\{|\\[\\{}]|[{}]")
_HASHES = re.compile(r"####[ \t]*(\S.*)")
_PHRASE = re.compile(
    r"(?:\b(?:the|la)[ ]+(?:final[ ]+)?(?:answer|respuesta)(?:[ ]+final)?[ ]+(?:is|es)\b"
    r"|\b(?:answer|respuesta)(?:[ ]+final)?[ *]*:)[\s:*]*(?=\S)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_LAST_NUMBER = re.compile(rf"(?:(?<![\w)\]}}])[-−])?{_NUMBER}(?:/\d+)?%?")
_FRACTION = re.compile(r"([+-]?)\\frac\{(\d+)\}\{(\d+)\}")
_QUANTITY = re.compile(rf"([+-]?)\$?([+-]?)({_NUMBER})(?:/(\d+))?\s*(%|[^\W\d_]{{2,}}(?: [^\W\d_]{{2,}}){{0,2}})?")
# Words that change a number instead of giving it a unit.
_NO_UNITS = frozenset(
    {"and", "or", "to", "ni", "pi", "sqrt"}
    | {"dozen", "hundred", "thousand", "million", "billion", "docenas", "mil", "millones"}
)
_NOISE = re.compile(r"\\[,;:! ]|\\left\b|\\right\b|\\displaystyle\b|\*\*")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mbox)\{([^{}]*)\}")


@dataclass(frozen=True)
class Verdict:
    """Outcome of one check.

    Attributes:
        correct: Whether the answer equals the gold answer; False for every status but ``ok``.
        extracted: The answer as it stands in the completion, None without one.
        method: Where it stood: ``boxed``, ``hashes``, ``phrase`` or ``last_number``; None without an answer.
        status: ``ok``, ``no_answer``, ``timeout``, ``error`` (the child failed) or ``too_long``.
    """

    correct: bool
    extracted: str | None
    method: str | None
    status: str


def verify(completion: str, gold: str) -> Verdict:
    r"""Check a completion's final answer against the gold answer; may be called from any thread.

    Equal text and equal numbers (exact; thousands commas, a leading ``$``, a trailing ``%``, full stop or unit do not
    count) decide first; two numbers never go further. A point is the decimal sign in every language.

    Args:
        completion: Generated text.
        gold: The bare answer, such as ``72`` or ``\frac{1}{2}``.
    """
    found = extract_answer(completion)
    if found is None:
        return Verdict(False, None, None, "no_answer")
    answer, method = found
    if max(len(answer), len(gold)) > MAX_CHARACTERS:
        return Verdict(False, answer, method, "too_long")
    equal = _compare_fast(_normalise(answer), _normalise(gold))
    if equal is not None:
        return Verdict(equal, answer, method, "ok")
    correct, status = _child.check(_unwrap(answer), _unwrap(gold))
    return Verdict(correct, answer, method, status)


def extract_answer(text: str) -> tuple[str, str] | None:
    r"""Find the final answer of a solution.

    The first of these that occurs: the last ``\boxed{x}``; the last ``#### x``; the last "the answer is x",
    "Answer: x", "la respuesta es x" or "Respuesta: x", up to the end of its sentence; the last number.

    Returns:
        The answer and the method's name (see `Verdict`), or None.
    """
    boxed = _last_box(text)
    if boxed:
        return boxed, "boxed"
    if hashes := _HASHES.findall(text):
        return hashes[-1].strip(), "hashes"
    if phrases := list(_PHRASE.finditer(text)):
        line = text[phrases[-1].end() :].split("\n", 1)[0]
        answer = _SENTENCE_END.split(line, maxsplit=1)[0].strip(" \t*")
        if answer:
            return answer, "phrase"
    if numbers := _LAST_NUMBER.findall(text):
        return numbers[-1], "last_number"
    return None


def _last_box(text: str) -> str | None:
    """Content of the closed box that opens last, by one pass over the braces."""
    open_braces: list[tuple[int, bool]] = []
    last_start, content = -1, None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token.endswith("{") and token != r"\{":
            open_braces.append((match.end(), token != "{"))
        elif token == "}" and open_braces:
            start, is_box = open_braces.pop()
            if is_box and start > last_start:
                last_start, content = start, text[start : match.start()].strip()
    return content


def _unwrap(answer: str) -> str:
    """Take away a full stop and the delimiters of mathematics."""
    return re.sub(r"^\$(.*)\$$|^\\[(\[](.*)\\[)\]]$", r"\1\2", answer.strip().rstrip(".")).strip().rstrip(".")


def _normalise(answer: str) -> str:
    """Take away all that carries no meaning: delimiters, spacing commands, text wrappers, spare spaces."""
    text = _unwrap(answer).replace("{,}", ",").replace("−", "-").replace(r"\$", "$").replace(r"\%", "%")
    text = re.sub(r"\\[dt]frac\b", r"\\frac", _TEXT.sub(r" \1 ", _NOISE.sub("", text)))
    return " ".join(text.split())


def _compare_fast(answer: str, gold: str) -> bool | None:
    """Decide between normalised answers by text or number; None if neither decides."""
    if answer == gold:
        return True
    answer_number, gold_number = _as_number(answer), _as_number(gold)
    return None if answer_number is None or gold_number is None else answer_number == gold_number


def _as_number(text: str) -> Fraction | None:
    """Exact value of a number, with its unit if it has one, or None if the text is something else."""
    if match := _FRACTION.fullmatch(text):
        sign, numerator, denominator = match.groups()
    elif match := _QUANTITY.fullmatch(text):
        first_sign, second_sign, numerator, denominator, unit = match.groups("")
        sign = first_sign or second_sign
        if (first_sign and second_sign) or _NO_UNITS.intersection(unit.casefold().split()):
            return None
    else:
        return None
    divisor = int(denominator or 1)
    if divisor == 0:
        return None
    value = Fraction(numerator.replace(",", "")) / divisor
    return -value if sign == "-" else value


class _Child:
    """The child process with math-verify: started by the first check, replaced after a time-out or a crash."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, answer: str, gold: str) -> tuple[bool, str]:
        """Return whether the two are equal, and the status ``ok``, ``timeout`` or ``error``."""
        with self._lock:
            try:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                reply = self._ask(json.dumps([answer, gold]), TIME_LIMIT)
            except TimeoutError:
                self._stop()
                return False, "timeout"
            except (OSError, EOFError):
                self._stop()
                return False, "error"
            except BaseException:  # an interrupt: the reply still to come must not meet the next question
                self._stop()
                raise
        return reply == b"true\n", "error" if reply == b"null\n" else "ok"

    def close(self) -> None:
        """End the child; the next check starts another."""
        with self._lock:
            self._stop()

    def _start(self) -> None:
        worker = Path(__file__).with_name("verify_worker.py")
        # -P: the script's folder, with our module names, must not come before the standard library.
        command = [sys.executable, "-P", str(worker), str(TIME_LIMIT), str(MEMORY_LIMIT)]
        self._stop()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._ask("", START_LIMIT)

    def _ask(self, line: str, limit: float) -> bytes:
        """Send a line, if any, and return the reply's line.

        Raises:
            TimeoutError: If it took longer than ``limit`` seconds.
            OSError, EOFError: If the child has ended.
        """
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        if line:
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
        deadline = time.monotonic() + limit
        reply = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not reply.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                part = os.read(process.stdout.fileno(), 64)
                if not part:
                    raise EOFError
                reply += part
        return reply

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with process:  # closes the pipes and waits
                pass


_child = _Child()
atexit.register(lambda: _child.close())


def _forget_child() -> None:
    """A forked process must not write into its parent's pipes."""
    global _child
    _child = _Child()


os.register_at_fork(after_in_child=_forget_child)
