"""Completions that make answer parsers hang, run out of memory or crash, and good ones to mix them with.

For the tests of the verifier and for ``verify.py``. No poisoned completion has the answer ``GOLD``.
"""

import os
import random
from pathlib import Path

MEGABYTE = 1_000_000
GOLD = "x + 31"  # not a number, so that every answer that is short enough goes to math-verify

_BOXED = {
    "the tower of Math-Verify's issue": r"\dfrac{5^{5^{5^{5^5}}-4}-5}{16}",
    "a tower": "9^{9^{9^{9^9}}}",
    "a tower with a variable": "x^{9^{9^9}} + 9^{9^{9^9}}",
    "a tower of tens": "10^{10^{10^{10}}}",
    "a tower in a fraction": r"\frac{2^{2^{2^{2^{2^2}}}}}{3^{3^{3^3}}}",
    "a tower below": r"7^{-7^{7^{7^7}}}",
    "a tower of many floors": "2^{" * 60 + "2" + "}" * 60,
    "a large power": "(123456789^{987654321})",
    "a difference of large powers": "3^{10000000000} - 3^{9999999999}",
    "a polynomial to a large power": "(x+y+z+w+1)^{3000} - (x+y)^{2999}",
    "a root of a large power": r"\sqrt[3]{2^{1000000007}+1}",
    "a factorial": "(10^9)!",
    "factorials of factorials": "((9!)!)!",
    "many factorials": "9!!!!!!!!",
    "a binomial": r"\binom{10^{10}}{5 \cdot 10^9}",
    "a long sum": r"\sum_{n=1}^{10^{12}} \frac{1}{n^2+1}",
    "nested sums": r"\sum_{i=1}^{10^6}\sum_{j=1}^{10^6}\sum_{k=1}^{10^6} \frac{1}{i+j+k}",
    "a long product": r"\prod_{n=1}^{10^9} n",
    "an integral": r"\int_0^1 \sin(x^x)^{\cos(x^{x^x})} e^{-x^{17}} dx",
    "nested integrals": r"\int_0^x \int_0^y \int_0^z e^{\sin(xyz)^7} dx dy dz",
    "a limit": r"\lim_{x \to 0} \frac{\sin(\tan x) - \tan(\sin x)}{\arcsin(\arctan x) - \arctan(\arcsin x)}",
    "an equation to solve": "x^{7} + 3x^{5} - e^{x} = \\sin(x^{3}) + 7^{x}",
    "a Gamma function": r"\Gamma(10^{12})",
    "nested roots": r"\sqrt{2+" * 60 + "2" + "}" * 60,
    "nested sines": r"\sin(" * 80 + "x" + ")" * 80,
    "nested fractions": r"\frac{1}{1+" * 70 + "1" + "}" * 70,
    "nested braces": "{" * 450 + "1" + "}" * 450,
    "nested brackets": "(" * 450 + "1" + ")" * 450,
    "nested minus signs": "-" * 900 + "1",
    "nested absolute values": "|" * 400 + "x" + "|" * 400,
    "open brackets": "(" * 900,
    "a large matrix power": r"\begin{pmatrix} 1 & 1 \\ 1 & 0 \end{pmatrix}^{10^{12}}",
    "a wide matrix": r"\begin{pmatrix}" + "1 & " * 200 + r"1 \end{pmatrix}",
    "a decimal with a large exponent": "1e999999999",
    "a large power of ten": r"1.5 \times 10^{999999999999}",
    "a thousand digits": "7" * 999,
    "a fraction of long numbers": r"\frac{" + "7" * 450 + "}{" + "3" * 450 + "}",
    "a division by zero": r"\frac{x}{0} + \frac{0}{0}",
    "NUL": "x + \x00 31",
    "a lone surrogate": "x + \ud800 31",
    "a surrogate pair in two parts": "\udfff\ud83d",
    "right-to-left marks": "\u202ex + 31\u202c \u200f٣١",
    "mixed scripts": "х + 31 ३१ 三十一 ๓๑ ۳۱",  # a Cyrillic х
    "combining marks": "x" + "\u0301" * 500,
    "control characters": "\x1b[31m\x07\x08\x7f x \r\r\r",
    "a command that reads files": r"\input{/etc/passwd} \write18{sleep 60}",
    "a command that defines itself": r"\def\a{\a\a}\a",
    "Python": "__import__('os').system('sleep 60')",
    "a lambda": "(lambda f: f(f))(lambda f: f(f))",
    "quotes and newlines": '"]\n["1", "1"]\n',
}
_WHOLE = {
    "a megabyte of digits": "7" * MEGABYTE,
    "a megabyte of digits in a box": r"\boxed{" + "7" * MEGABYTE + "}",
    "a megabyte of groups of digits": "1.111" * (MEGABYTE // 5),
    "a megabyte of open braces": "{" * MEGABYTE,
    "a megabyte of open boxes": r"\boxed{" * (MEGABYTE // 7),
    "nested boxes": r"\boxed{" * (MEGABYTE // 8) + "}" * (MEGABYTE // 8),
    "a megabyte of closing braces": "}" * MEGABYTE,
    "a megabyte of backslashes": "\\" * MEGABYTE,
    "a megabyte of hashes": "#" * MEGABYTE,
    "a megabyte of spaces after an answer": "the answer is" + " " * MEGABYTE,
    "the word answer over and over": "the answer is " * (MEGABYTE // 14),
    "reasons over and over": " because 1" * (MEGABYTE // 10) + "=",
    "equations over and over": "1=1=" * (MEGABYTE // 4),
    "a megabyte of minus signs": "-" * MEGABYTE,
    "a megabyte of NUL": "\x00" * MEGABYTE,
    "a megabyte of lone surrogates": "\ud800" * MEGABYTE,
    "a million lines": "1\n" * (MEGABYTE // 2),
}
POISON = {name: rf"\boxed{{{answer}}}" for name, answer in _BOXED.items()} | _WHOLE
# Completion, gold answer, whether it is right.
GOOD = [
    (r"So it is \boxed{x + 31}.", "31 + x", True),
    (r"So it is \boxed{x + 30}.", "31 + x", False),
    (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{1}{\sqrt{2}}", True),
    (r"\boxed{\frac{\sqrt{3}}{2}}", r"\frac{1}{\sqrt{2}}", False),
    ("The answer is 1,200 dollars.", "1200", True),
    ("#### 18", "81", False),
]


def mixed_checks(count: int, poisoned: float, seed: int) -> list[tuple[str, str, bool]]:
    """Good checks with their verdicts, and a share ``poisoned`` of checks whose verdict is never "correct"."""
    draw = random.Random(seed)
    poison = list(POISON.values())
    return [(draw.choice(poison), GOLD, False) if draw.random() < poisoned else draw.choice(GOOD) for _ in range(count)]


def zombies() -> list[int]:
    """Process ids of this process's ended children that have not been waited for."""
    states = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # the process has ended meanwhile
        states[int(path.parent.name)] = (fields[0], int(fields[1]))
    return [pid for pid, (state, parent) in states.items() if state == "Z" and parent == os.getpid()]
