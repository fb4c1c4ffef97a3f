"""The teacher-forced report as a browser's parser sees it, and the table for the terminal."""

import re
from pathlib import Path
from typing import Any

from ollm_rl.pretrain.teacher_forced.token_report import format_scores, write_token_report
from tests.report.test_report import LOADING, Page


def scores(*, choice: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {
        "token_accuracy": [0.7784, 0.75, 0.8],
        "nll": [0.8114, 0.7, 0.9],
        "answer_correct": [0.5, 0.4, 0.6],
    }
    return {**found, "information": [0.6, 0.5, 0.7], "gain_per_nat": None} if choice else found


def row(token: str, options: list[str], *, answer: bool = False) -> dict[str, Any]:
    return {
        "token": token,
        "answer": answer,
        "options": options,
        "policy": [0.3, 0.3, 0.4],
        "encoder": [0.98, 0.01, 0.01],
    }


def result_of(*rows: dict[str, Any]) -> dict[str, Any]:
    histogram = {"edges": [0.0, 0.1, 0.2], "counts": [1500, 0]}
    return {
        "columns": {"backbone": scores(), "oracle": scores(choice=True)},
        "oracle_gain": [0.09, 0.08, 0.1],
        "nll_gain": [0.1234, 0.1, 0.15],
        "options": {
            "distinct_tokens": [1.625, 1.5, 1.75],
            "live_share": [0.3, 0.25, 0.35],
            "mutual_information": [0.0421, 0.04, 0.05],
            "mode_coverage_live": [0.7, 0.6, 0.8],
            "mode_coverage_first": None,
            "whole_coverage": [0.55, 0.5, 0.6],
        },
        "ambiguity": {
            "deterministic": [0.481, 0.4, 0.5],
            "ambiguous": [0.2, 0.1, 0.3],
            "top_two": [0.9, 0.8, 0.95],
            "ambiguous_top_two": None,
            "entropy_histogram": histogram,
            "top_two_histogram": histogram,
        },
        "num_problems": 1319,
        "num_tokens": 1500,
        "num_answers": 1300,
        "option_tables": [{"id": "a", "question": "3 < 4 & more?", "rows": list(rows)}],
        **dict.fromkeys(("model", "lora", "data", "split", "seed", "machine"), "an origin"),
        "commit": "0123abcd",
        "command": "ollm-rl eval <x>",
        "versions": {"torch": "9.8.7"},
    }


def report(tmp_path: Path, *rows: dict[str, Any]) -> tuple[str, Page]:
    write_token_report(tmp_path / "forced.html", result_of(*rows))
    html = (tmp_path / "forced.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    return html, page


def test_the_table_has_the_numbers_worked_by_hand() -> None:
    assert format_scores(result_of()).splitlines() == [
        "column         token accuracy  NLL (nats per token)       answer correct       revealed (nats)  gain per nat",
        "--------  -------------------  --------------------  -------------------  --------------------  ------------",
        "backbone  77.8 % [75.0, 80.0]  0.811 [0.700, 0.900]  50.0 % [40.0, 60.0]                     –             –",
        "oracle    77.8 % [75.0, 80.0]  0.811 [0.700, 0.900]  50.0 % [40.0, 60.0]  0.600 [0.500, 0.700]             –",
        "gain over the backbone: oracle 9.0 % [8.0, 10.0] of the tokens, 0.123 nats [0.100, 0.150] per token; "
        "[95 % intervals]",
    ]


def test_every_number_and_the_origin_is_on_the_page(tmp_path: Path) -> None:
    _, page = report(tmp_path, row(" She", [" Janet", " Janet", " She"]))
    for text in (
        *("77.8 % [75.0, 80.0]", "0.811 [0.700, 0.900]", "50.0 % [40.0, 60.0]", "0.600 [0.500, 0.700]"),
        *("share of the tokens\n9.0 % [8.0, 10.0]", "per token\n0.123 nats [0.100, 0.150]"),
        *("distinct tokens per position\n1.62 [1.50, 1.75]", "48.1 % [40.0, 50.0]", "hold 90.0 % [80.0, 95.0]"),
        "about the next token\n0.042 nats [0.040, 0.050]",
        "(at least 10 % under the backbone) that an option offers, where options differ\n70.0 % [60.0, 80.0]",
        "among the first 8 tokens of a solution\n–",
        *("1,500 tokens of 1,319 solutions,\n1,300 of them", "3 < 4 & more?", "ollm-rl eval <x>", "0123abcd"),
    ):
        assert text in page.text, text
    assert page.count("svg") == 2
    assert [text for _, _, text in page.spots] == [
        "0 to 0.1 nats: 1,500 positions (100.0 %)",
        "0.0 to 10.0 %: 1,500 positions (100.0 %)",
    ]


def test_the_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    html, page = report(tmp_path, row("1", ["1", "1", "1"]))
    for tag, attributes in page.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        for name in LOADING & set(attributes):
            assert (attributes[name] or "").startswith("#"), f"<{tag} {name}={attributes[name]!r}>"
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert not re.search(r"#0[1234]0[1234]0[1234]|#0a0a", html), "a stand-in colour was left in a plot"


def test_options_that_differ_from_the_vote_are_coloured(tmp_path: Path) -> None:
    # Option 2 is the most probable, but " Janet" has 0.6. The true token is marked by its colour.
    html, _ = report(tmp_path, row(" She", [" Janet", " Janet", " She"]), row("\n", ["\n"] * 3, answer=True))
    first, second = re.findall(r"<tr.*?</tr>", html[html.index('<table class="options">') :])[1:3]
    assert re.findall(r'<td class="([dt ]*)" data-label="option .">(\S+?)<small>(.*?)</small>', first) == [
        (" ", "␣Janet", "30 / 98"),
        (" ", "␣Janet", "30 / 1"),
        ("d t", "␣She", "40 / 1"),
    ]
    # Where all agree there is one cell, and on a phone every cell says what it is.
    assert second == (
        '<tr class="same"><td data-label="true token"><span class="answer">⏎</span></td>'
        '<td class=" t" colspan="3" data-label="all options">⏎</td></tr>'
    )
    assert re.findall(r'data-label="(.*?)"', first) == ["true token", "option 0", "option 1", "option 2"]


def test_markup_in_tokens_is_shown_and_not_run(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    _, page = report(tmp_path, row(attack, [attack] * 3))
    assert page.text.count(attack) == 2 and page.count("script") == 1  # that of the plots
