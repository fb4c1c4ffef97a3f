"""Completions are measured while the host waits for the device, each once."""

import pickle

import pytest

from ollm_rl.agents import completions
from ollm_rl.agents.completions import Checks, Completion, rewarded
from ollm_rl.answers.pool import shared_pool
from ollm_rl.metrics.language import Switching
from ollm_rl.problems.problem import Problem
from tests.tiny_models import EOS, tiny_tokenizer

TEXTS = ["Hay 3 y 4 manzanas, así que la respuesta es 7.", "7", "The answer is 7.", "7 7 7 7 7 7 7 7 7 7 7 7"]
QUESTION = "There are 3 apples and 4 apples. How many apples are there?"
PROBLEMS = [Problem(id=str(n), question=QUESTION, solution="", answer="7", language="en") for n in range(len(TEXTS))]


def test_what_is_measured_in_a_wait_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    correct = completions.measure_switching

    def counted(question: str, text: str) -> Switching:
        seen.append(text)
        return correct(question, text)

    monkeypatch.setattr(completions, "measure_switching", counted)
    tokenizer = tiny_tokenizer()
    checks = Checks(PROBLEMS, tokenizer, [EOS], shared_pool())
    tokens = [tokenizer(text)["input_ids"] + [EOS] * (text != TEXTS[3]) for text in TEXTS]
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    checks.begin([2, 0], [tokens[2], tokens[0]])
    checks.measure(lambda: len(seen) == 1)
    assert seen == [texts[2]]
    checks.begin([1, 3], [tokens[1], tokens[3]])
    checks.measure(lambda: True)
    assert len(seen) == 1
    found = [rewarded(one, {"correctness": 1.0}, max_tokens=64) for one in checks.finish()]
    assert sorted(seen) == sorted(texts)
    found = pickle.loads(pickle.dumps(found))  # as from a worker
    assert [one.row()["switched"] for one in found] == [True, False, False, False]
    assert ["no_end" in one.row()["flags"] for one in found] == [False, False, False, True]
    assert len(seen) == len(texts)
    alone = [
        Completion(
            problem=one.problem, text=one.text, tokens=one.tokens, terminated=one.terminated, verdict=one.verdict
        )
        for one in found
    ]
    assert [(one.switching, one.flags) for one in alone] == [(one.switching, one.flags) for one in found]
