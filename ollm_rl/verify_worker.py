"""The child process that runs math-verify for `ollm_rl.verify`; it is a script and imports nothing of ours.

It answers each line ``["answer", "gold"]`` on standard input with one line, ``true``, ``false`` or ``null`` (failed).
SymPy objects stay here: printing one can take for ever.
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
        time_limit: Seconds after which the parent kills this process; an orphan ends itself a second or two later.
        memory_limit: Address space in bytes, above which allocations fail.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    # What libraries print must not reach the channel of the answers.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        logging.disable(logging.CRITICAL)
        # Warms up imports and parser tables before the clock of the first check runs.
        print(json.dumps(_check("1", "x")), file=replies, flush=True)
        for line in sys.stdin:
            # No handler: the default action ends the process even inside C code.
            signal.alarm(math.ceil(time_limit) + 1)
            answer, gold = json.loads(line)
            reply = _check(answer, gold)
            signal.alarm(0)
            print(json.dumps(reply), file=replies, flush=True)


def _check(answer: str, gold: str) -> bool | None:
    from math_verify import LatexExtractionConfig, parse, verify

    # Their own time limits need SIGALRM, which is ours here; the parent's limit replaces them.
    try:
        whole = [LatexExtractionConfig()]
        parsed_gold = parse(f"${gold}$", extraction_config=whole, parsing_timeout=None)
        parsed_answer = parse(f"${answer}$", extraction_config=whole, parsing_timeout=None)
        return bool(verify(parsed_gold, parsed_answer, timeout_seconds=None))
    except Exception:
        return None


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
