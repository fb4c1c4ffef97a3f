"""The child process that runs math-verify for `ollm_rl.answers.pool`: a script without imports from this package.

It answers each line ``["answer", "gold"]`` on standard input with one line: ``true``, ``false``, ``error`` (failed), or
``spent`` (out of memory or stack, so that the process should be replaced). For ``["completion", "gold", "whole"]``
math-verify extracts the answer itself. SymPy objects stay here, because printing one can take forever.

Math-verify calls numbers equal below an absolute tolerance. Here decimals are exact, and so is every comparison of
numbers that SymPy can decide. Others are compared relatively, to hundreds of digits (`_same_number`).
"""

import json
import logging
import math
import os
import re
import resource
import signal
import sys
from functools import partial
from itertools import product
from typing import Any

MOST_DIGITS = 500  # two numbers that agree in so many digits are equal
LONG = 20  # parts of an expression
_TRANSPOSED = re.compile(r"(?<![A-Za-z\\])([A-Z]) ?\^ ?\{? ?T(?![a-z]) ?\}?")
_COMMAND = r"\\(?:text|mathbb|begin|end|operatorname) ?\{[^{}]*\}|\\[A-Za-z]+"
_INVERSE = re.compile(r"\b([fgh]) ?\^ ?\{? ?-1 ?\}?(?= ?\()")
_PRIMED = re.compile(rf"{_COMMAND}|([A-Za-z])('+)")
# What math-verify drops: primes and ^T after brackets and numbers, their indices, text.
_DROPPED = re.compile(
    r"(?<=[)\]}])'+|(?<=[\d)]) ?_ ?\{[^{}]*\}|(?<!(?<![A-Za-z\\])[A-Z]) ?\^ ?\{? ?T(?![a-z])"
    r"|\\text ?\{(?! ?,? ?(?:and|or) ?\})[^{}]*\}"
)
_DERIVATIVE = re.compile(
    r"\\frac\{(?:d|\\partial) ?(?:\^ ?\{(\d)\})? ?([A-Za-z])\}\{(?:d|\\partial) ?([A-Za-z])(?: ?\^ ?\{\1\})?\}"
)


def main(time_limit: float, memory_limit: int) -> None:
    """Serve until standard input ends.

    Args:
        time_limit: Seconds after which the parent kills this process. An orphan ends itself a second or two later, by
            wall time or processor time.
        memory_limit: Address space in bytes; allocations beyond it fail.
    """
    seconds = math.ceil(time_limit) + 1
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    # Output of libraries must not reach the channel of the answers.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as replies:
        logging.disable(logging.CRITICAL)
        _make_exact()
        # Loads imports and parser tables before the time of the first check counts.
        print(_check("x+1", "1+x"), file=replies, flush=True)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.dup2(nowhere, sys.stderr.fileno())
        for line in sys.stdin:
            used = resource.getrusage(resource.RUSAGE_SELF)
            limit = math.ceil(used.ru_utime + used.ru_stime) + seconds
            resource.setrlimit(resource.RLIMIT_CPU, (limit if most < 0 else min(limit, most), most))
            # No handler: the default action ends the process even inside C code.
            signal.alarm(seconds)
            reply = _check(*json.loads(line))
            signal.alarm(0)
            print(reply, file=replies, flush=True)


def _make_exact() -> None:
    """Let math-verify tell R from r and compare numbers by `_same_number`, and roots and logarithms where defined.

    A variable equals what simplifies to it.
    """
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify import grader, parser
    from sympy import Symbol

    parser.latex2sympy = partial(parser.latex2sympy, conversion_config=ConversionConfig(lowercase_symbols=False))
    same_name, same_formula = grader.sympy_compare_symbols, grader.sympy_symbolic_eq
    grader.sympy_numeric_eq = _same_number
    grader.sympy_symbolic_eq = lambda one, other: same_formula(one, other) or _same_where_defined(one, other)

    def same_symbol(one: Any, other: Any) -> bool:
        both = isinstance(one, Symbol) and isinstance(other, Symbol)  # a_1 is not A_1
        return (not both and same_name(one, other)) or grader.sympy_symbolic_eq(one, other)

    grader.sympy_compare_symbols = same_symbol


def _check(answer: str, gold: str, whole: str = "") -> str:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    from math_verify.parser import NormalizationConfig

    # Units are removed before, because math-verify takes the variables c and t for units.
    normalisation = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    latex = LatexExtractionConfig(normalization_config=normalisation)
    # Their own time limits need SIGALRM, which is ours here; the parent's limit replaces them.
    if not whole and _dropped(answer) != _dropped(gold):
        return "false"
    try:
        # Without a fallback, which would compare what it cannot parse as text, or parts of it.
        settings = {"fallback_mode": "no_fallback", "parsing_timeout": None, "raise_on_error": True}
        gold = _with_derivatives(gold.replace("$", ""))
        parsed_gold = parse(f"${gold}$", extraction_config=[latex], **settings)
        if whole:
            parsed_answer = parse(
                answer, extraction_config=[LatexExtractionConfig(), ExprExtractionConfig()], **settings
            )
        else:
            answer = _with_derivatives(answer.replace("$", ""))
            parsed_answer = parse(f"${answer}$", extraction_config=[latex], **settings)
        if not parsed_gold:
            # As texts the two differ, or they would not be here. There is no second opinion then.
            return "error" if whole else "false"
        equal = verify(
            [_with_fractions(value) for value in parsed_gold],
            [_with_fractions(value) for value in parsed_answer],
            allow_set_relation_comp=True,
            timeout_seconds=None,
            raise_on_error=True,
        )
        return "true" if equal else "false"
    except (MemoryError, RecursionError):
        return "spent"
    except Exception:
        return "error"


def _dropped(text: str) -> list[str]:
    """What math-verify drops from a text, in one spelling."""
    return sorted(found.strip(" ^{}") for found in _DROPPED.findall(text))


def _with_derivatives(text: str) -> str:
    """Write derivatives, transposes and inverse functions as variables.

    Math-verify drops primes and ^T, and takes dy/dx for 0 and f^{-1}(x) for a quotient.
    """
    text = _INVERSE.sub(r"\1_{I}", _TRANSPOSED.sub(r"\1_{T}", text))
    text = _PRIMED.sub(lambda match: f"{match[1]}_{{{'q' * len(match[2])}}}" if match[1] else match.group(), text)
    return _DERIVATIVE.sub(lambda match: f"{match[2]}_{{{'d' * int(match[1] or 1)}{match[3]}}}", text)


def _with_fractions(value: Any) -> Any:
    """A SymPy object with decimals as exact fractions, and i as the imaginary unit if it is the only variable.

    A long one is computed where it is made of fractions. Math-verify leaves 10/10/10/... as it is written, and the time
    that SymPy takes for such an object doubles with every division.
    """
    import sympy

    if items := getattr(
        value, "_unsorted_args", None
    ):  # math-verify's sets and conjunctions keep an order of their own
        return type(value)(*map(_with_fractions, items))
    if isinstance(value, sympy.Expr) and {str(symbol) for symbol in value.free_symbols} == {"i"}:
        value = value.xreplace(dict.fromkeys(value.free_symbols, sympy.I))
    value = value.xreplace({number: sympy.Rational(str(number)) for number in value.atoms(sympy.Float)})
    # Percentages and short fractions stay as written, because math-verify tells them apart.
    if isinstance(value, sympy.Expr) and sum(1 for _ in sympy.preorder_traversal(value)) > LONG:
        value = value.replace(_of_fractions, lambda part: part.func(*part.args))
    return value


def _of_fractions(part: Any) -> bool:
    """Whether an expression is a product, a sum or a low power of fractions, which SymPy computes at once."""
    powers = part.is_Pow and part.args[1].is_Integer and abs(part.args[1]) <= 64
    return bool(part.args) and (part.is_Mul or part.is_Add or powers) and all(one.is_Rational for one in part.args)


def _same_number(one: Any, other: Any, *_: object) -> bool:
    """Whether two SymPy expressions without variables are the same number; False for others."""
    import sympy
    from math_verify.grader import get_pct_val, is_atomic_or_pct_atomic

    if isinstance(one, sympy.MatrixBase) and isinstance(other, sympy.MatrixBase):
        return one.shape == other.shape and all(map(_same_number, one.doit().flat(), other.doit().flat()))
    if all(is_atomic_or_pct_atomic(value, sympy.Number) for value in (one, other)):
        return one.doit() == other.doit() or get_pct_val(one, one) == get_pct_val(other, other)
    if not all(isinstance(value, sympy.Expr) and not value.free_symbols for value in (one, other)):
        return False
    difference = (one - other).doit()
    if difference.is_Rational or difference.is_zero is not None:
        return bool(difference.is_zero)
    # Full cancellation leaves numbers with a precision of one bit.
    parts = difference.evalf(15, maxn=MOST_DIGITS).as_real_imag()
    return all(part.is_zero or (part.is_Float and part._prec == 1) for part in parts)


def _same_where_defined(one: Any, other: Any) -> bool:
    """Whether formulas with roots or logarithms are equal for positive variables, and for others where these are real.

    So sqrt(1/n) is 1/sqrt(n), and ln(ab) is ln a + ln b, but sqrt(x^2) is not x.
    """
    import sympy

    if not all(isinstance(value, sympy.Expr) for value in (one, other)) or one.has(sympy.Abs) != other.has(sympy.Abs):
        return False
    difference = one - other
    names = sorted(difference.free_symbols, key=str)
    powers = {power for power in difference.atoms(sympy.Pow) if not power.exp.is_Integer}
    parts = powers | difference.atoms(sympy.log)
    if not parts or not 0 < len(names) <= 3:
        return False
    for signs in product((1, -1), repeat=len(names)):
        point = {
            name: sign * sympy.Rational(size, 7) for name, sign, size in zip(names, signs, (2, 3, 5), strict=False)
        }
        is_real = all(part.args[0].xreplace(point).is_nonnegative for part in parts)
        if is_real and not _same_number(one.xreplace(point), other.xreplace(point)):
            return False
    return sympy.simplify(difference.xreplace({name: sympy.Dummy(positive=True) for name in names})) == 0


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
