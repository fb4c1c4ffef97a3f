"""Generated arithmetic word problems with worked solutions in English and Spanish.

The embedded backbone ``tiny-arith`` is trained on this text. Like human text it is ambiguous. A frequent short style
skips a step and is often wrong; a rarer careful style is nearly always right. Some solutions switch language half-way,
and some loop without an end. ``SolutionMix`` states every share, so metrics can be compared with the true rates.
"""

from dataclasses import dataclass

import numpy as np

NAMES = ("Ana", "Tom", "Mia", "Ben", "Eva", "Leo", "Sara", "Max", "Lena", "Hugo")
# English plural, Spanish plural, and the Spanish "how many" that agrees with it.
ITEMS = (
    ("apples", "manzanas", "Cuántas"),
    ("books", "libros", "Cuántos"),
    ("coins", "monedas", "Cuántas"),
    ("pens", "bolígrafos", "Cuántos"),
    ("stamps", "sellos", "Cuántos"),
    ("cards", "cartas", "Cuántas"),
)
OPENING = {"en": "{name} has {start} {items}.", "es": "{name} tiene {start} {items}."}
GAIN = {
    "en": ("{name} buys {n} more.", "{name} finds {n} more.", "A friend gives {name} {n}."),
    "es": ("{name} compra {n} más.", "{name} encuentra {n} más.", "Un amigo le da {n}."),
}
LOSS = {
    "en": ("{name} loses {n}.", "{name} gives away {n}.", "{name} sells {n}."),
    "es": ("{name} pierde {n}.", "{name} regala {n}.", "{name} vende {n}."),
}
ASKING = {
    "en": ("How many {items} does {name} have now?", "How many {items} are left?"),
    "es": ("¿{how_many} {items} tiene {name} ahora?", "¿{how_many} {items} quedan?"),
}
SHORT = {
    "en": (
        "The answer is {x}.",
        "The answer is {x}.",
        "So the answer is {x}.",
        "{name} has {x} now. The answer is {x}.",
    ),
    "es": (
        "La respuesta es {x}.",
        "La respuesta es {x}.",
        "Entonces la respuesta es {x}.",
        "Quedan {x}. La respuesta es {x}.",
    ),
}
CAREFUL_OPENING = {
    "en": ("First, {name} starts with {start} {items}.", "We begin with the {start} {items}."),
    "es": ("Hay {start} {items}.", "Empieza con {start}."),
}
CAREFUL_STEP = {
    "en": {"+": "Then we add {n}, so {a} + {n} = {x}.", "-": "Then we take away {n}, so {a} - {n} = {x}."},
    "es": {"+": "Luego suma {a} + {n} = {x}.", "-": "Luego resta {a} - {n} = {x}."},
}
ANSWER = {"en": "The answer is {x}.", "es": "La respuesta es {x}."}
OTHER_LANGUAGE = {"en": "es", "es": "en"}


@dataclass(frozen=True, kw_only=True)
class SolutionMix:
    """Shares of the kinds of solution, which are the true rates of the generated text.

    Attributes:
        short: Share of solutions that state the answer without working.
        switch: Share of careful solutions that change to the other language at about the middle.
        loop: Share of solutions that repeat one step and end without an answer.
        short_wrong: Share of the short solutions of two or three steps that skip one, so that the answer is wrong. A
            single step cannot be skipped.
        slip: Share of the solutions with working (careful and switching) in which one result is off by one or two.
    """

    short: float = 0.60
    switch: float = 0.06
    loop: float = 0.04
    short_wrong: float = 0.60
    slip: float = 0.02

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}={value} is not a share; give a number between 0 and 1")
        if self.short + self.switch + self.loop > 1.0:
            raise ValueError(
                f"short + switch + loop = {self.short + self.switch + self.loop:.3f} is more than 1; lower one of them"
            )


@dataclass(frozen=True, kw_only=True)
class ArithProblem:
    """One word problem: its text, its answer, and one worked solution with its properties."""

    question: str
    answer: int
    language: str
    solution: str
    style: str  # "short", "careful", "switch" or "loop"
    wrong: bool  # a step was skipped, or its result is off


def generate(count: int, generator: np.random.Generator, *, mix: SolutionMix | None = None) -> list[ArithProblem]:
    """Generate ``count`` problems with random numbers from ``generator`` and the shares of solutions in ``mix``."""
    return [_problem(generator, mix or SolutionMix()) for _ in range(count)]


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[rng.integers(len(choices))]


def _problem(rng: np.random.Generator, mix: SolutionMix) -> ArithProblem:
    language = "en" if rng.random() < 0.5 else "es"
    start = int(rng.integers(5, 21))
    steps: list[tuple[str, int]] = []
    total = start
    for _ in range(rng.integers(1, 4)):
        n = int(rng.integers(2, 8))
        sign = "+" if rng.random() < 0.5 or total - n < 0 else "-"
        total += n if sign == "+" else -n
        steps.append((sign, n))
    name = _pick(rng, NAMES)
    item = ITEMS[rng.integers(len(ITEMS))]
    words = {
        "en": {"name": name, "items": item[0], "start": start},
        "es": {"name": name, "items": item[1], "how_many": item[2], "start": start},
    }
    story = [OPENING[language]]
    story += [_pick(rng, (GAIN if sign == "+" else LOSS)[language]).replace("{n}", str(n)) for sign, n in steps]
    story.append(_pick(rng, ASKING[language]))
    question = " ".join(story).format(**words[language])

    draw = rng.random()
    if draw < mix.short:
        style, wrong = "short", len(steps) > 1 and bool(rng.random() < mix.short_wrong)
        if wrong:
            sign, n = steps[rng.integers(len(steps))]
            stated = total - n if sign == "+" else total + n
        else:
            stated = total
        solution = _pick(rng, SHORT[language]).format(x=stated, **words[language])
    else:
        style = "switch" if draw < mix.short + mix.switch else "careful"
        if draw >= 1.0 - mix.loop:
            style = "loop"
        wrong = style != "loop" and bool(rng.random() < mix.slip)
        solution = _worked(rng, words, start, steps, language=language, style=style, slip=wrong)
    return ArithProblem(question=question, answer=total, language=language, solution=solution, style=style, wrong=wrong)


def _worked(
    rng: np.random.Generator,
    words: dict[str, dict[str, object]],
    start: int,
    steps: list[tuple[str, int]],
    *,
    language: str,
    style: str,
    slip: bool,
) -> str:
    """A step-by-step solution in the story's order or with the gains first."""
    if rng.random() < 0.3:
        steps = sorted(steps, key=lambda step: step[0])  # "+" sorts before "-"
    # Sentences (opening, steps, answer) from this index on are in the other language.
    switch_at = 1 + len(steps) // 2 if style == "switch" else len(steps) + 2
    slip_at = int(rng.integers(len(steps))) if slip else -1
    loop_at = int(rng.integers(len(steps))) if style == "loop" else -1
    sentences = [_pick(rng, CAREFUL_OPENING[language]).format(**words[language])]
    total = start
    for index, (sign, n) in enumerate(steps):
        sentence_language = language if index + 1 < switch_at else OTHER_LANGUAGE[language]
        result = total + n if sign == "+" else total - n
        if index == slip_at:
            result += int(rng.choice([-2, -1, 1, 2])) if result >= 2 else int(rng.choice([1, 2]))
        step = CAREFUL_STEP[sentence_language][sign].format(a=total, n=n, x=result)
        if index == loop_at:
            return " ".join(sentences + [step] * int(rng.integers(5, 9)))
        sentences.append(step)
        total = result
    sentence_language = language if style != "switch" else OTHER_LANGUAGE[language]
    return " ".join([*sentences, ANSWER[sentence_language].format(x=total)])
