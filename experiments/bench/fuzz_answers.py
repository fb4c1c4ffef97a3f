"""Coverage-guided fuzzing of extraction and comparison.

python -m ollm_rl.experiments.bench.fuzz_answers -max_total_time=300

Needs ``pip install atheris``; a separate environment will do, since nothing else is imported. An exception or a slow
input counts as a crash. The flags are libFuzzer's.
"""

import sys

try:
    import atheris
except ImportError:
    sys.exit("fuzz_answers: the package atheris is missing; run: pip install atheris")

with atheris.instrument_imports(include=["ollm_rl"]):
    from ollm_rl.answers.comparison import compare
    from ollm_rl.answers.extraction import boxes, extract_answer
    from ollm_rl.answers.quantities import read_quantity
    from ollm_rl.answers.spelling import clean
    from ollm_rl.answers.units import split_unit


def check(data: bytes) -> None:
    """Fuzz one input: two texts that every public function has to accept."""
    provider = atheris.FuzzedDataProvider(data)
    text, other = provider.ConsumeUnicode(400), provider.ConsumeUnicode(100)  # lone surrogates included
    extracted = extract_answer(text)
    assert extracted is None or extracted[0]
    boxes(text)
    for part in (text, extracted[0] if extracted else ""):
        assert compare(clean(part), clean(part)) is True
        compare(clean(part), clean(other))
        read_quantity(clean(part))
        split_unit(clean(part))


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
