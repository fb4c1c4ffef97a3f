"""What a reader of a report looks for: contents, names, order, colours, and completions side by side."""

import math
import re
from pathlib import Path
from typing import Any

from ollm_rl.report.completions import by_problem, counted_kinds, most_answered
from ollm_rl.report.tables import Estimate, Table
from ollm_rl.report.training import other_plots, styles_of
from tests.report.test_report import Page, curve, looked_at, method_row, report, sample, summary_of


def titles(tag: str, html: str) -> list[str]:
    return re.findall(rf"<{tag}[^>]*>([^<]*)</{tag}>", html)


def plots_of(**rows: list[dict[str, Any]]) -> dict[str, Page]:
    """The plots besides the reward, by title, of curves of one seed."""
    curves = {name: [each] for name, each in rows.items()}
    return {shown.title: Page(str(shown.plot)) for shown in other_plots(curves, styles_of(curves, {}))}


def test_the_contents_lead_to_every_heading_in_its_order(tmp_path: Path) -> None:
    table = Table("Until reward 0.9", "A note.", ["method", "episodes"], [["a", Estimate(96.0, 64.0, math.inf, 0)]])
    html, page = report(
        tmp_path, summary_of(method_row("a")), {"a": [curve()]}, [sample(method="a")], [looked_at(method="a")], [table]
    )
    links = re.findall(r'<a href="#(\w+)">([^<]*)</a>', html)
    assert links == re.findall(r'<h2 id="(\w+)">([^<]*)</h2>', html) and len(links) == 7
    assert "96 <small>[64, never]</small>" in html


def test_the_table_is_in_the_order_of_the_figure(tmp_path: Path) -> None:
    rows = [method_row("worst", accuracy=0.1), method_row("unknown", accuracy=math.nan), method_row("best")]
    html, page = report(tmp_path, summary_of(*rows), {}, [])
    assert re.findall(r'<td data-label="method">(\w+)</td>', html) == ["best", "worst", "unknown"]
    assert [text.split(":")[0] for _, _, text in page.spots] == ["best", "worst"]


def test_a_method_has_one_name_on_several_problem_sets(tmp_path: Path) -> None:
    rows = [method_row("a", data="arith"), method_row("b", data="arith"), method_row("a", data="rg:x", accuracy=0.5)]
    html, _ = report(tmp_path, summary_of(*rows), {}, [])
    assert titles("h3", html) == ["rg:x", "arith"]
    assert set(re.findall(r'<td data-label="method">([^<]*)</td>', html)) == {"a", "b"}


def test_what_was_not_chosen_is_grey_and_explained(tmp_path: Path) -> None:
    summary = summary_of(method_row("lr 0.1"), method_row("lr 1"))
    reason = "lr 0.1 was chosen by validation accuracy"
    html, page = report(
        tmp_path, summary | {"unchosen": {"lr 1": reason}}, {"lr 1": [curve()], "lr 0.1": [curve()]}, []
    )
    assert "lr 1 (one seed, not chosen)" in page.text and f"Pale grey: lr 1; {reason}." in page.text
    assert re.findall(r'<tr class="unchosen"><td data-label="method">([^<]*)', html) == ["lr 1"]
    assert [tag["style"] for name, tag in page.tags if name == "line"] == [
        "stroke: var(--series-0)",
        "stroke: var(--faint)",
    ]


def test_entropy_of_decisions_is_apart_from_that_of_all_positions() -> None:
    plots = plots_of(options=curve(1, entropy=0.8, live_share=0.25), tokens=curve(1, entropy=0.3, live_share=1.0))
    told = {title: [text for _, _, text in page.spots] for title, page in plots.items()}
    assert told["Entropy at decisions (nats)"] == ["options: 0.8 after 0 episodes"]
    assert told["Entropy of all positions (nats)"] == ["options: 0.2 after 0 episodes", "tokens: 0.3 after 0 episodes"]
    # That a policy over tokens decides at every position is so by construction.
    assert told["Decisions"] == ["options: 25.0 % after 0 episodes"]
    assert list(plots_of(tokens=curve(1, entropy=0.3, live_share=1.0))) == ["Entropy of all positions (nats)"]


def test_methods_stand_side_by_side_and_are_filtered_by_what_is_wrong(tmp_path: Path) -> None:
    samples = [
        sample("7", "a"),
        sample("8", "a", question="4 + 5?", answer="9", correct=False),
        sample("siete", "b", switched=True),
        sample("9 9 9", "b", question="4 + 5?", answer="9", flags=["loop"]),
        sample("3", "b", question="1 + 2?", answer="3", switched=None),
    ]
    problems = by_problem(samples)
    assert [(problem["question"], [row["method"] for row in problem["samples"]]) for problem in problems] == [
        ("3 + 4?", ["a", "b"]),
        ("4 + 5?", ["a", "b"]),
        ("1 + 2?", ["b"]),
    ]
    assert [problem["kinds"] for problem in problems] == [["switched"], ["wrong", "degenerate"], []]
    assert counted_kinds(problems) == [("wrong", 1), ("switched", 1), ("degenerate", 1)]
    html, page = report(tmp_path, summary_of(method_row("a")), {}, samples)
    groups = [tag for name, tag in page.tags if name == "details"]
    assert [tag["data-kinds"] for tag in groups] == ["switched", "wrong degenerate", ""]
    assert not any("open" in tag for tag in groups), "collapsed"
    assert titles("button", html) == ["all (3)", "wrong (1)", "switched (1)", "degenerate (1)"]


def test_of_many_problems_those_are_shown_that_most_methods_answered() -> None:
    samples = [sample(method=method, question=question) for method, question in ("a1", "a2", "a3", "b4", "b2", "b5")]
    assert [row["method"] + row["question"] for row in most_answered(samples, 2)] == ["a1", "a2", "b2"]
    several = [sample(method=method, question=question) for method, question in ("a1", "a1", "a1", "a2", "b2")]
    assert [row["method"] + row["question"] for row in most_answered(several, 1)] == ["a2", "b2"]
