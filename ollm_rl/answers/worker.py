"""The child process that runs math-verify for `ollm_rl.answers.pool`; it is a script and imports nothing of ours.

It answers each line ``["answer", "gold"]`` on standard input with one line: ``true``, ``false``, ``error`` (failed), or
``spent`` (failed by running out of memory or stack, and better replaced). After ``["completion", "gold", "whole"]``
math-verify looks for the answer itself. SymPy objects stay here: printing one can take for ever.
"""

import json
import logging
import math
import os
import resource
import signal
import sys


def main(time_limit: float, memory_limit: int) -> None:
    """Serve until standard input ends.

    Args:
        time_limit: Seconds after which the parent kills this process; an orphan ends itself a second or two later, be
            it by wall time or by processor time.
        memory_limit: Address space in bytes, above which allocations fail.
    """
    seconds = math.ceil(time_limit) + 1
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    # What libraries print must not reach the channel of the answers.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as replies:
        logging.disable(logging.CRITICAL)
        # Warms up imports and parser tables before the clock of the first check runs.
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


def _check(answer: str, gold: str, whole: str = "") -> str:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    from math_verify.parser import NormalizationConfig

    # Units are taken away before: math-verify would take the variables c and t for some.
    normalisation = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    latex = LatexExtractionConfig(normalization_config=normalisation)
    # Their own time limits need SIGALRM, which is ours here; the parent's limit replaces them.
    try:
        # Without a fallback: what it cannot parse it would compare as text, or parts of it.
        settings = {"fallback_mode": "no_fallback", "parsing_timeout": None, "raise_on_error": True}
        parsed_gold = parse(f"${gold}$", extraction_config=[latex], **settings)
        if whole:
            parsed_answer = parse(
                answer, extraction_config=[LatexExtractionConfig(), ExprExtractionConfig()], **settings
            )
        else:
            parsed_answer = parse(f"${answer}$", extraction_config=[latex], **settings)
        if not parsed_gold:
            return "error"  # without a meaning of the gold answer nothing is right or wrong
        equal = verify(
            parsed_gold,
            parsed_answer,
            float_rounding=12,  # decimals are exact, but sums of them are not
            allow_set_relation_comp=True,
            timeout_seconds=None,
            raise_on_error=True,
        )
        return "true" if equal else "false"
    except (MemoryError, RecursionError):
        return "spent"
    except Exception:
        return "error"


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
