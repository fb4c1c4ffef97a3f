"""Coverage-guided fuzzing of extraction and comparison.

python -m ollm_rl.experiments.bench.fuzz_answers -max_total_time=300

Needs ``pip install atheris`` (an environment of its own will do: nothing else is imported). Any exception is a crash,
and so is a slow input; the flags are libFuzzer's.
"""

import sys

import atheris

with atheris.instrument_imports(include=["ollm_rl"]):
    from ollm_rl.answers.comparison import compare
    from ollm_rl.answers.extraction import boxes, extract_answer
    from ollm_rl.answers.quantities import clean, read_quantity, split_unit


def check(data: bytes) -> None:
    """One input: two texts, of which every public function has to make something."""
    provider = atheris.FuzzedDataProvider(data)
    text, other = provider.ConsumeUnicode(400), provider.ConsumeUnicode(100)  # lone surrogates included
    found = extract_answer(text)
    assert found is None or found[0]
    boxes(text)
    for part in (text, found[0] if found else ""):
        assert compare(clean(part), clean(part)) is True
        compare(clean(part), clean(other))
        read_quantity(clean(part))
        split_unit(clean(part))


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
