"""The HTML report as a browser's parser sees it, and the table for the terminal."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.report.page import format_table, write_explorer, write_report

LOADING = {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"}
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Every tag with its attributes, the text outside scripts and styles, and whether tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.spots: list[tuple[float, float, str]] = []  # of all plots, in their order
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.spots += [(x, y, text) for x, y, text in json.loads(dict(attrs).get("data-spots") or "[]")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def method_row(method: str, **changes: Any) -> dict[str, Any]:
    row = {"accuracy": 0.412, "low": 0.381, "high": 0.443, "episodes": 10240, "seconds": 61.4}
    return {"method": method, **row, "language_switching_rate": 0.06, "degeneracy_rate": 0.0125, **changes}


def summary_of(*methods: dict[str, Any]) -> dict[str, Any]:
    return {
        "methods": list(methods),
        "commit": "0123abcd",
        "seed": 5,
        "versions": {"torch": "9.8.7", "numpy": "6.5.4"},
        "machine": "a machine & more",
        "command": "ollm-rl compare --problems <file>",
        "data": "1,000 problems of arith (test)",
        "evaluated": True,
        "seeds": [5],
        "notes": [],
    }


def curve(length: int = 4, **columns: Any) -> list[dict[str, Any]]:
    return [
        {"iteration": i, "episodes": 256 * (i + 1), "seconds": 1.5 * i, "reward": 0.1 * i, **columns}
        for i in range(length)
    ]


def once(**curves: list[dict[str, Any]]) -> dict[str, list[list[dict[str, Any]]]]:
    """Curves of one seed each."""
    return {name.replace("_", "-"): [rows] for name, rows in curves.items()}


def sample(completion: str = "So 7.", method: str = "latent-ppo", **changes: Any) -> dict[str, Any]:
    row = {"method": method, "question": "3 + 4?", "answer": "7", "completion": completion}
    return {**row, "correct": True, "switched": False, "flags": [], "source": "evaluation on arith", **changes}


def choice(text: str, policy: float, written: bool = False, **then: Any) -> dict[str, Any]:
    return {"text": text, "written": written, "policy": policy, "options": [[0, policy, 0.5]], **then}


def looked_at(
    text: str = "So", other: str = "It", *, method: str = "latent-ppo", question: str = "3 + 4?"
) -> dict[str, Any]:
    """Options of a method: a live token with one alternative, then one where all agree."""
    then: dict[str, Any] = {"then": f" is {other}", "ended": True, "correct": False}
    live = {
        "text": text,
        "entropy": 0.56,
        "choices": [choice(text, 0.75, True), choice(other, 0.25, **then)],
    }
    agreed = {"text": " 7.", "entropy": 0.0, "choices": [choice(" 7.", 1.0, True)]}
    item = {"question": question, "answer": "7", "correct": True, "positions": [live, agreed]}
    return {
        "method": method,
        "explored": [item],
        "usage": [[0.75, math.nan], [0.25, math.nan]],
        "entropy": [[0.56, 0.0], [0.1]],
    }


def report(tmp_path: Path, *arguments: Any) -> tuple[str, Page]:
    """Write a report of (summary, curves, samples); return its text and its parsed page."""
    path = tmp_path / "report.html"
    write_report(path, *arguments)
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    return html, page


def test_every_method_number_and_origin_is_on_the_page(tmp_path: Path) -> None:
    summary = summary_of(method_row("backbone-greedy", episodes=0, seconds=0), method_row("latent-ppo"))
    curves = {name: [curve()] for name in ("latent-ppo", "vocab-reinforce (lr 0.0003)", "latent-reinforce")}
    _, page = report(tmp_path, summary, curves, [sample(method="frozen-option-model", flags=["loop"], switched=True)])
    for text in (
        *("backbone-greedy", "latent-ppo", "vocab-reinforce (lr 0.0003)", "latent-reinforce", "frozen-option-model"),
        *("41.2 % [38.1, 44.3]", "10,240", "61", "6.0 %", "1.2 %"),
        *("0123abcd", "seed 5", "a machine & more", "ollm-rl compare --problems <file>", "torch\xa09.8.7"),
        *("1,000 problems of arith (test)", "a bootstrap over the problems", "loop", "switches language"),
    ):
        assert text in page.text
    # Three legend lines, one plot of accuracy, two of reward.
    assert page.count("svg") == 3 + 1 + 2
    assert page.count("article") == 1


def test_the_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    curves = once(latent_ppo=curve(completion_tokens=20.0, entropy=1.0))
    html, page = report(tmp_path, summary_of(method_row("latent-ppo")), curves, [sample()], [looked_at()])
    for tag, attributes in page.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        for name in LOADING & set(attributes):
            assert (attributes[name] or "").startswith("#"), f"<{tag} {name}={attributes[name]!r}>"
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert not re.search(r"#0[1234]0[1234]0[1234]|#0a0a", html), "a stand-in colour was left in a plot"


def test_markup_in_completions_and_names_is_shown_and_not_run(tmp_path: Path) -> None:
    attack = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>"
    name = 'a"><u>$x$ & co'
    summary = summary_of(method_row(name))
    html, page = report(
        tmp_path,
        summary,
        {name: [curve()]},
        [sample(attack, method=name, question=attack, answer=attack)],
        [looked_at(attack, attack, method=name, question=attack)],
    )
    # Question, answer and completion to read; question and token of the explorer. Its tokens also have titles.
    assert page.text.count(attack) == 5
    assert page.count("script") == 4  # the plots, the filter, the explorer and its data
    assert page.count("img") == page.count("u") == 0
    assert f"{name} 41.2 %" in page.text  # the label in the accuracy plot
    assert any(text.startswith(f"{name}: 41.2 %") for _, _, text in page.spots)


def test_plots_share_no_ids_and_find_their_own_parts(tmp_path: Path) -> None:
    curves = once(latent_ppo=curve(1), latent_reinforce=curve(1, entropy=0.5))
    options = [looked_at(), looked_at(method="latent-reinforce")]
    html, page = report(tmp_path, summary_of(method_row("latent-ppo")), curves, [], options)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'url\(#(\w+)\)|href="#(\w+)"', html)) <= {pair for i in ids for pair in ((i, ""), ("", i))}


def test_only_quantities_that_were_measured_are_drawn(tmp_path: Path) -> None:
    curves = once(latent_ppo=curve(entropy=0.5, live_share=None), latent_reinforce=curve(degeneracy_rate=math.nan))
    html, page = report(tmp_path, summary_of(method_row("latent-ppo")), curves, [])
    assert "Entropy of all positions (nats)" in page.text
    assert not [title for title in ("Decisions", "Entropy at decisions", "Degeneracy") if f">{title}" in html]


def test_missing_values_and_empty_parts_are_tolerated(tmp_path: Path) -> None:
    unknown = dict.fromkeys(("accuracy", "low", "high", "seconds", "language_switching_rate"), math.nan)
    summary = summary_of(method_row("latent-ppo", **unknown, degeneracy_rate=None), method_row("vocab-reinforce"))
    gaps = [
        *curve(2),
        {"iteration": 2, "episodes": 768, "seconds": math.nan, "reward": None},
        {"iteration": 3, "episodes": None, "seconds": 9.0, "reward": math.nan},
    ]
    curves = once(latent_ppo=gaps, vocab_reinforce=[], none=curve(2, reward=None))
    _, page = report(tmp_path, summary, curves, [])
    assert "nan" not in page.text.lower() and "None" not in page.text
    report(tmp_path, summary, {}, [])


def test_lines_of_the_same_colour_differ_in_dashes(tmp_path: Path) -> None:
    curves = {f"method-{i}": [curve()] for i in range(10)}
    _, page = report(tmp_path, summary_of(method_row("method-0")), curves, [])
    looks = {(tag["style"], tag["stroke-dasharray"]) for name, tag in page.tags if name == "line"}
    assert len(looks) == 10


def test_two_hundred_long_samples_and_long_runs_stay_below_three_megabytes(tmp_path: Path) -> None:
    quantities = {"completion_tokens": 20.0, "entropy": 1.0, "live_share": 0.2, "mixed_groups": 0.5}
    rows = curve(2000, **quantities, language_switching_rate=0.1, degeneracy_rate=0.1)
    for i, row in enumerate(rows):
        row.update({name: math.sin(37.0 * i) for name in (*quantities, "reward", "degeneracy_rate")})
    # Three bytes a letter in UTF-8.
    completions = [sample("啊" * 1100 + "START" + "啊" * 9000 + "END") for _ in range(200)]
    curves = {f"method-{i}": [rows] for i in range(6)}
    options = looked_at()
    options |= {"usage": [[0.1] * 96] * 10, "entropy": [[0.01 * place for place in range(96)]] * 32}
    html, page = report(tmp_path, summary_of(method_row("m")), curves, completions, [options])
    assert len(html.encode()) < 3_000_000
    assert page.text.count("START") == page.text.count("END") == 200
    assert "8,108 characters left out" in page.text  # 1100 + 5 + 9000 + 3 - 2000 kept


def test_several_seeds_are_one_line_with_its_interval(tmp_path: Path) -> None:
    seeds = [curve(4), curve(4), curve(3)]
    html, page = report(tmp_path, summary_of(method_row("latent-ppo")), {"latent-ppo": seeds}, [])
    bands = re.findall(r"fill: var\(--series-0\); fill-opacity: 0.15", html)
    assert len(bands) == 2  # by episodes and by seconds
    assert "95\xa0% interval\nof the mean" in page.text and "(mean of 3 seeds)" in page.text
    assert page.count("line") == 1
    html, page = report(tmp_path, summary_of(method_row("latent-ppo")), {"latent-ppo": seeds[:1]}, [])
    assert "fill-opacity: 0.15" not in html and "interval\nof the mean" not in page.text
    assert "latent-ppo (one seed)" in page.text


def test_the_explorer_shows_every_token_as_a_button_and_live_ones_marked(tmp_path: Path) -> None:
    html, page = report(tmp_path, summary_of(method_row("latent-ppo")), {}, [], [looked_at()])
    buttons = [attributes for tag, attributes in page.tags if tag == "button"]
    assert [attributes["class"] for attributes in buttons] == ["token live", "token"]
    assert "Usage of each option" in page.text and "2 options of equal\nprobability have 0.69 nats" in page.text
    assert buttons[0]["title"] == "So 75.0 %, It 25.0 %"  # on hover
    assert [attributes["tabindex"] for attributes in buttons] == ["-1", "-1"]  # one is reached by Tab, others by arrows
    (data,) = re.findall(r'<script type="application/json" id="explorer-data">(.*?)</script>', html, re.DOTALL)
    assert json.loads(data)[0][0]["choices"][1]["then"] == " is It"


def test_a_line_break_is_a_token_that_can_be_seen_and_clicked(tmp_path: Path) -> None:
    _, page = report(tmp_path, summary_of(method_row("latent-ppo")), {}, [], [looked_at(".\n", "")])
    assert ".⏎ 7." in page.text and page.count("br") == 1
    _, page = report(tmp_path, summary_of(method_row("latent-ppo")), {}, [], [looked_at("", ".")])
    assert "· 7." in page.text and page.count("br") == 0  # half a character has no text


def test_a_page_says_where_nothing_was_evaluated(tmp_path: Path) -> None:
    summary = summary_of(method_row("latent-ppo")) | {"evaluated": False, "notes": ["No explorer: <gone>."]}
    _, page = report(tmp_path, summary, {}, [])
    assert "The last iteration of training" in page.text and "No explorer: <gone>." in page.text


def test_the_page_of_one_prompt_is_escaped_too(tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script>"
    path = tmp_path / "explorer.html"
    write_explorer(path, looked_at(attack, attack, question=attack)["explored"], summary_of() | {"model": attack})
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == [] and page.count("script") == 2
    assert page.text.count(attack) == 4  # model twice, question and token


def test_the_table_has_the_numbers_worked_by_hand() -> None:
    rows = [
        method_row("latent-ppo"),
        method_row("backbone-greedy", accuracy=1.0, low=0.9, high=1, episodes=0, seconds=0, degeneracy_rate=math.nan),
        method_row("vocab-reinforce", seconds=7.25, episodes=1234567, language_switching_rate=0),
    ]
    assert format_table(rows).splitlines() == [
        "method                 accuracy [95 %]   episodes  seconds  language switching  degeneracy",
        "---------------  ---------------------  ---------  -------  ------------------  ----------",
        "latent-ppo         41.2 % [38.1, 44.3]     10,240       61               6.0 %       1.2 %",
        "backbone-greedy  100.0 % [90.0, 100.0]          0        0               6.0 %           –",
        "vocab-reinforce    41.2 % [38.1, 44.3]  1,234,567      7.2               0.0 %       1.2 %",
    ]


def test_a_report_that_fails_leaves_the_old_one_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(KeyError):
        write_report(path, summary_of({"method": "latent-ppo"}), {}, [])
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
