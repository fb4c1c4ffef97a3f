"""Free-running evaluation: every rate counted by hand from known completions."""

import pytest

from ollm_rl.agents import evaluate as evaluate_module
from ollm_rl.agents.evaluate import evaluate
from ollm_rl.agents.loading import load_policy
from ollm_rl.problems import load_problems


def test_every_flag_has_its_own_rate_and_switches_are_counted_by_words(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["The answer is 3.", "7 7 7 7 7 7 7 7 7", "", "La respuesta es 3."]
    monkeypatch.setattr(evaluate_module, "completion_texts", lambda *_: texts)
    policy, tokenizer = load_policy("tiny-arith")
    problems = [problem for problem in load_problems("arith", limit=40) if problem.language == "en"][:4]
    result = evaluate(policy, tokenizer, problems, max_new_tokens=1, num_slots=4)  # none ends by itself
    rates = {name: value for name, value in result.items() if name.endswith("_rate")}
    assert rates == {
        "language_switching_rate": 0.25,
        "degeneracy_rate": 1.0,
        "loop_rate": 0.25,
        "no_end_rate": 1.0,
        "gibberish_rate": 0.0,
        "empty_rate": 0.25,
        "no_answer_rate": 0.0,
    }
    assert result["switches_per_1000_words"] == pytest.approx(1000 / 6)  # one, in six words
    assert [(row["words"], row["switches"]) for row in result["completions"]] == [(3, 0), (0, 0), (0, 0), (3, 1)]
    assert result["completions"][1]["flags"] == ["loop", "no_end"]
