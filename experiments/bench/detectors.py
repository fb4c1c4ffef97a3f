"""Measure the detectors of language switching and degeneracy: ``python -m ollm_rl.experiments.bench.detectors DATA``.

DATA is a folder with mgsm_dev.jsonl, mgsm_exemplars.jsonl, gsm8k_train.jsonl and math_train.jsonl. A hash of its id
puts each problem into one of two halves, and all translations of a problem into the same half. Thresholds were chosen
on ``--half tune``, and results are those of ``--half report``.

``--only`` names one part: ``language``, ``cases`` (a file of prompts and completions with the right verdict, given by
``--cases``), ``arith`` (both detectors against the generator's true rates), ``degeneracy`` or ``perplexity`` (of
``--backbone``). ``--only letters`` measures nothing; it prints the table of letter pairs in
`ollm_rl.metrics.gibberish`.
"""

import argparse
import hashlib
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ollm_rl.experiments.bench.detector_texts import Case, degenerate, spliced, whole
from ollm_rl.experiments.script import start
from ollm_rl.metrics.degenerate import FLAGS, degeneracy, is_improbable
from ollm_rl.metrics.gibberish import letter_pairs
from ollm_rl.metrics.language import detect_language, measure_switching, switches_language
from ollm_rl.metrics.sentences import latin_words
from ollm_rl.problems.arith import SolutionMix, generate
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.sources import load_problems
from ollm_rl.runs import origin

FILES = ("mgsm_dev", "mgsm_exemplars", "gsm8k_train", "math_train")
SEED = 0
ARITH_PROBLEMS = 5000
PERPLEXITY_PROBLEMS = 100
NUM_EXAMPLES = 10  # misjudged texts per kind in the result


def load_half(data: Path, half: str) -> dict[str, list[Problem]]:
    """Problems of one half of each file."""
    problems = {name: load_problems(f"jsonl:{data / name}.jsonl") for name in FILES}
    return {name: [problem for problem in rows if half_of(problem) == half] for name, rows in problems.items()}


def half_of(problem: Problem) -> str:
    """``tune`` or ``report``, by a hash of the id without the language that it names."""
    name = problem.id.replace(f"-{problem.language}-", "-")
    return ("tune", "report")[hashlib.sha256(name.encode()).digest()[0] % 2]


def language(problems: Mapping[str, Sequence[Problem]]) -> dict[str, Any]:
    """Detected languages of questions, recall on spliced completions, and false alarms on whole ones."""
    questions = problems["mgsm_dev"]
    detected = [(problem.language, detect_language(problem.question), problem.question) for problem in questions]
    mistaken = [row for row in detected if row[0] != row[1]]
    splices, wholes = list(spliced(problems, random.Random(SEED))), list(whole(problems))
    return {
        "questions": len(questions),
        "languages": len({problem.language for problem in questions}),
        "share_right": 1 - len(mistaken) / len(questions),
        "mistaken": mistaken,
        "spliced": _switched(splices, wrong_verdict=False),
        "whole": _switched(wholes, wrong_verdict=True),
    }


def _switched(cases: Sequence[Case], *, wrong_verdict: bool) -> dict[str, Any]:
    """Completions of each kind judged to switch, and examples of those that have ``wrong_verdict``."""
    counts: defaultdict[str, Counter[bool | None]] = defaultdict(Counter)
    mistaken: list[Case] = []
    for case in cases:
        verdict = switches_language(case.prompt, case.completion)
        counts[case.kind][verdict] += 1
        counts["all"][verdict] += 1
        if bool(verdict) == wrong_verdict:
            mistaken.append(case)
    return {
        "kinds": {kind: {"switched": verdicts[True], "texts": verdicts.total()} for kind, verdicts in counts.items()},
        "mistaken": mistaken[:NUM_EXAMPLES],
    }


def language_cases(path: Path) -> dict[str, Any]:
    """How many completions there are of each kind, how many are judged wrongly, and these."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    mistaken = []
    for row in rows:
        verdict = switches_language(row["prompt"], row["completion"])
        is_wrong = bool(verdict) != row["switches"]
        kinds[row["kind"]].update(cases=1, wrong=is_wrong, unknown=verdict is None)
        mistaken += [row] * is_wrong
    return {"kinds": kinds, "all": sum(kinds.values(), Counter[str]()), "mistaken": mistaken}


def arith() -> dict[str, Any]:
    """Rates measured in generated solutions, next to the generator's shares and the actual styles of the solutions.

    ``standard_error`` is that of the share over ARITH_PROBLEMS draws.
    """
    mix = SolutionMix()
    problems = generate(ARITH_PROBLEMS, np.random.default_rng(SEED))
    counts = [measure_switching(problem.question, problem.solution) for problem in problems]
    looping = ["loop" in degeneracy(problem.solution) for problem in problems]
    other = [bool(degeneracy(problem.solution) - {"loop"}) for problem in problems]
    flagged: dict[str, list[bool]] = {"switch": [bool(count.switched) for count in counts], "loop": looping}
    result: dict[str, Any] = {"problems": len(problems), "other_flags": sum(other)}
    for style, true_rate in (("switch", mix.switch), ("loop", mix.loop)):
        styled = [problem.style == style for problem in problems]
        result[style] = {
            "true_rate": true_rate,
            "standard_error": math.sqrt(true_rate * (1 - true_rate) / len(problems)),
            "share_of_style": sum(styled) / len(problems),
            "measured_rate": sum(flagged[style]) / len(problems),
            "mistaken": sum(true != flag for true, flag in zip(styled, flagged[style], strict=True)),
        }
    switches = sum(count.switches for count in counts)
    result["switches"] = {"found": switches, "true": sum(problem.style == "switch" for problem in problems)}
    result["switches_per_1000_words"] = 1000 * switches / sum(count.words for count in counts)
    return result


def degeneracy_flags(problems: Mapping[str, Sequence[Problem]]) -> dict[str, Any]:
    """Precision and recall of every flag on corrupted and sound solutions, and the flags of all human solutions."""
    cases = list(degenerate(problems, random.Random(SEED)))
    flags_of = [degeneracy(case.completion, finished=case.truth != "no_end") for case in cases]
    result: dict[str, Any] = {"texts": len(cases), "sound": sum(not case.truth for case in cases), "flags": {}}
    for flag in FLAGS:
        true = sum(case.truth == flag for case in cases)
        hits = sum(case.truth == flag and flag in flags for case, flags in zip(cases, flags_of, strict=True))
        flagged = sum(flag in flags for flags in flags_of)
        result["flags"][flag] = {"texts": true, "precision": hits / flagged, "recall": hits / true}
    kinds: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for case, flags in zip(cases, flags_of, strict=True):
        kinds[case.truth, case.kind].update(["texts", *flags])
    result["kinds"] = [{"truth": truth, "kind": kind, **counts} for (truth, kind), counts in kinds.items()]
    result["mistaken"] = [
        (case, sorted(flags)) for case, flags in zip(cases, flags_of, strict=True) if flags != {case.truth} - {""}
    ][:NUM_EXAMPLES]
    result["human"] = {name: _human([p.solution for p in problems[name]]) for name in ("gsm8k_train", "math_train")}
    result["human"]["mgsm_dev, questions"] = _human([problem.question for problem in problems["mgsm_dev"]])
    return result


def _human(texts: Sequence[str]) -> dict[str, Any]:
    flags_of = [degeneracy(text) for text in texts]
    flagged = [(sorted(flags), text) for flags, text in zip(flags_of, texts, strict=True) if flags]
    counts = Counter(flag for flags, _ in flagged for flag in flags)
    return {"texts": len(texts), "flagged": len(flagged), **counts, "examples": flagged[:NUM_EXAMPLES]}


def perplexity(problems: Mapping[str, Sequence[Problem]], backbone: str) -> dict[str, Any]:
    """Whether perplexity separates solutions (GSM8K's, or tiny-arith's own) from the same with permuted words."""
    import torch

    from ollm_rl.backbones.loading import load_backbone
    from ollm_rl.problems.prompts import encode_prompts

    model, tokenizer = load_backbone(backbone)
    pool = load_problems("arith", split="test", limit=1000) if backbone == "tiny-arith" else problems["gsm8k_train"]
    chosen = [problem for problem in pool if len(problem.solution.split()) >= 10][:PERPLEXITY_PROBLEMS]
    rng = random.Random(SEED)
    result: dict[str, Any] = {"backbone": backbone, "problems": len(chosen)}
    for kind in ("sound", "words permuted"):
        nats, improbable = [], 0
        for problem, prompt in zip(chosen, encode_prompts(chosen, tokenizer, max_length=10_000), strict=True):
            words = problem.solution.split()
            text = problem.solution if kind == "sound" else " ".join(rng.sample(words, len(words)))
            completion = tokenizer(text, add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            log_probs = logits.float().log_softmax(-1)[range(len(completion)), completion].tolist()
            nats.append(-np.mean(log_probs))
            improbable += is_improbable(log_probs)
        result[kind] = {
            "flagged": improbable,
            "perplexity": np.exp(np.quantile(nats, [0, 0.05, 0.5, 0.95, 1])).tolist(),
        }
    return result


def letters(problems: Mapping[str, Sequence[Problem]]) -> str:
    """Bits of a letter given the one before it, in 26 rows; pair frequencies are averaged over five languages."""
    english = [text for name in FILES[2:] for p in problems[name] for text in (p.question, p.solution)]
    frequencies = np.zeros((26, 26))
    for code in ("en", "de", "es", "fr", "sw"):
        native = [problem.question for problem in problems["mgsm_dev"] if problem.language == code]
        counts = _pair_counts(native + english if code == "en" else native)
        frequencies += counts / counts.sum() / 5
    frequencies += 1e-7
    bits = -np.log2(frequencies / frequencies.sum(1, keepdims=True))
    return " ".join("".join(f"{min(15, round(value)):x}" for value in row) for row in bits)


def _pair_counts(texts: Iterable[str]) -> np.ndarray:
    counts = np.zeros((26, 26))
    for text in texts:
        np.add.at(counts, tuple(letter_pairs(latin_words(text)).T), 1)
    return counts


def main() -> None:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with the four files")
    parser.add_argument("--half", default="report", choices=("tune", "report"))
    parser.add_argument("--only", choices=("language", "cases", "arith", "degeneracy", "perplexity", "letters"))
    parser.add_argument("--cases", type=Path, help="file of the cases part, which is left out without one")
    parser.add_argument("--backbone", default="tiny-arith")
    args = parser.parse_args()
    if args.only == "cases" and args.cases is None:
        parser.error("--only cases needs --cases FILE")
    problems = load_half(args.data, args.half)
    if args.only == "letters":
        print(letters(problems))
        return
    parts = {
        "language": lambda: language(problems),
        **({"cases": lambda: language_cases(args.cases)} if args.cases else {}),
        "arith": arith,
        "degeneracy": lambda: degeneracy_flags(problems),
        "perplexity": lambda: perplexity(problems, args.backbone),
    }
    result = {name: part() for name, part in parts.items() if args.only in (None, name)}
    print(json.dumps({"half": args.half, **result, **origin()}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    start(main)
