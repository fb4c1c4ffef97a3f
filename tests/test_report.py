"""The HTML report as a browser's parser sees it, and the table for the terminal."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.report import format_table, write_report

LOADING = {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"}
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Every tag with its attributes, the text outside scripts and styles, and whether tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
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
        "num_problems": 1000,
    }


def curve(length: int = 4, **columns: Any) -> list[dict[str, Any]]:
    return [
        {"iteration": i, "episodes": 256 * (i + 1), "seconds": 1.5 * i, "reward": 0.1 * i, **columns}
        for i in range(length)
    ]


def sample(completion: str = "So 7.", method: str = "latent-ppo", **changes: Any) -> dict[str, Any]:
    row = {"method": method, "question": "3 + 4?", "answer": "7", "completion": completion}
    return {**row, "correct": True, "switched": False, "flags": [], **changes}


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
    curves = {"latent-ppo": curve(), "vocab-reinforce (lr 0.0003)": curve(), "latent-reinforce": curve()}
    _, page = report(tmp_path, summary, curves, [sample(method="frozen-option-model", flags=["loop"], switched=True)])
    for text in (
        *("backbone-greedy", "latent-ppo", "vocab-reinforce (lr 0.0003)", "latent-reinforce", "frozen-option-model"),
        *("41.2 % [38.1, 44.3]", "10,240", "61", "6.0 %", "1.2 %"),
        *("0123abcd", "seed 5", "a machine & more", "ollm-rl compare --problems <file>", "torch\xa09.8.7"),
        *("95\xa0% interval: a bootstrap over the\n1,000 problems, from one seed", "loop", "switches language"),
    ):
        assert text in page.text
    # Three legend lines, one plot of accuracy, two of reward.
    assert page.count("svg") == 3 + 1 + 2
    assert page.count("article") == 1


def test_the_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    curves = {"latent-ppo": curve(completion_tokens=20.0, entropy=1.0)}
    html, page = report(tmp_path, summary_of(method_row("latent-ppo")), curves, [sample()])
    for tag, attributes in page.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        for name in LOADING & set(attributes):
            assert (attributes[name] or "").startswith("#"), f"<{tag} {name}={attributes[name]!r}>"
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert not re.search(r"#0[123]0[123]0[123]|#0a0a", html), "a stand-in colour was left in a plot"


def test_markup_in_completions_and_names_is_shown_and_not_run(tmp_path: Path) -> None:
    attack = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>"
    name = 'a"><b>$x$ & co'
    summary = summary_of(method_row(name))
    _, page = report(tmp_path, summary, {name: curve()}, [sample(attack, method=name, question=attack, answer=attack)])
    assert page.text.count(attack) == 3
    assert page.count("script") == 1  # the filter
    assert page.count("img") == page.count("b") == 0
    assert f"{name}: 41.2 %" in page.text  # the label in the accuracy plot
    assert {attributes.get("data-method") for tag, attributes in page.tags if tag == "article"} == {name}


def test_plots_share_no_ids_and_find_their_own_parts(tmp_path: Path) -> None:
    curves = {"latent-ppo": curve(1), "latent-reinforce": curve(1, entropy=0.5)}
    html, page = report(tmp_path, summary_of(method_row("latent-ppo")), curves, [])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'url\(#(\w+)\)|href="#(\w+)"', html)) <= {pair for i in ids for pair in ((i, ""), ("", i))}


def test_only_quantities_that_were_measured_are_drawn(tmp_path: Path) -> None:
    curves = {"latent-ppo": curve(entropy=0.5, live_share=None), "latent-reinforce": curve(degeneracy_rate=math.nan)}
    _, page = report(tmp_path, summary_of(method_row("latent-ppo")), curves, [])
    assert "Entropy (nats)" in page.text
    assert "Live positions (share)" not in page.text and "Degeneracy (share)" not in page.text


def test_missing_values_and_empty_parts_are_tolerated(tmp_path: Path) -> None:
    unknown = dict.fromkeys(("accuracy", "low", "high", "seconds", "language_switching_rate"), math.nan)
    summary = summary_of(method_row("latent-ppo", **unknown, degeneracy_rate=None), method_row("vocab-reinforce"))
    gaps = [
        *curve(2),
        {"iteration": 2, "episodes": 768, "seconds": math.nan, "reward": None},
        {"iteration": 3, "episodes": None, "seconds": 9.0, "reward": math.nan},
    ]
    _, page = report(tmp_path, summary, {"latent-ppo": gaps, "vocab-reinforce": [], "none": curve(2, reward=None)}, [])
    assert "nan" not in page.text.lower() and "None" not in page.text
    report(tmp_path, summary, {}, [])


def test_lines_of_the_same_colour_differ_in_dashes(tmp_path: Path) -> None:
    curves = {f"method-{i}": curve() for i in range(10)}
    _, page = report(tmp_path, summary_of(method_row("method-0")), curves, [])
    looks = {(tag["style"], tag["stroke-dasharray"]) for name, tag in page.tags if name == "line"}
    assert len(looks) == 10


def test_a_hundred_long_samples_and_long_runs_stay_below_a_megabyte(tmp_path: Path) -> None:
    quantities = {"completion_tokens": 20.0, "entropy": 1.0, "live_share": 0.2, "mixed_groups": 0.5}
    rows = curve(2000, **quantities, language_switching_rate=0.1, degeneracy_rate=0.1)
    for i, row in enumerate(rows):
        row.update({name: math.sin(37.0 * i) for name in (*quantities, "reward", "degeneracy_rate")})
    # Three bytes a letter in UTF-8.
    completions = [sample("啊" * 1100 + "START" + "啊" * 9000 + "END") for _ in range(100)]
    html, page = report(tmp_path, summary_of(method_row("m")), {f"method-{i}": rows for i in range(6)}, completions)
    assert len(html.encode()) < 1_000_000
    assert page.text.count("START") == page.text.count("END") == 100
    assert "8,108 characters left out" in page.text  # 1100 + 5 + 9000 + 3 - 2000 kept


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


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(KeyError):
        write_report(path, summary_of({"method": "latent-ppo"}), {}, [])
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
