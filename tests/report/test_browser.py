"""A report as large as the demo's in headless Chromium: it runs, reacts, fits and can be read."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ollm_rl.report.page import write_report
from tests.report.test_report import choice, curve, looked_at, method_row, sample, summary_of

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

ATTACK = "</pre></script><script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'>"
WIDTHS = (1280, 390)  # of a desktop and of a telephone
SMALLEST = 11  # pixels of a letter
# Every text with the height of its letters on the screen; those in a plot are scaled with it.
TEXTS = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    const box = parent.getBoundingClientRect();
    if (!walker.currentNode.data.trim() || !box.width || ["SCRIPT", "STYLE"].includes(parent.tagName)) continue;
    const plot = parent.closest("svg");
    const scale = plot ? plot.getBoundingClientRect().width / plot.viewBox.baseVal.width : 1;
    found.push([walker.currentNode.data.trim(), parseFloat(getComputedStyle(parent).fontSize) * scale]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods, one of three seeds; 200 completions, one of which attacks; an explorer with the same attack."""
    rates = {"completion_tokens": 20.0, "entropy": 0.5, "live_share": 0.1, "language_switching_rate": 0.1}
    seeds = [curve(12, **rates, degeneracy_rate=0.01 * seed) for seed in range(3)]
    curves = {"latent-ppo": seeds, "vocab-reinforce": [curve(12, **rates)], "a-long-name" * 8: [curve(12)]}
    rows = [method_row(name, data="jsonl:" + "a-long-folder/" * 6) for name in (*curves, "backbone-greedy")]
    samples = [
        sample("word " * 300, method=name, question=f"{i} + 1?", flags=["loop"]) for name in curves for i in range(66)
    ]
    samples += [sample(ATTACK, question=ATTACK, answer=ATTACK), sample("啊" * 3000, question="0 + 1?", correct=False)]
    options = [looked_at(method=name) for name in curves]
    long = [{"text": f" word{i}", "entropy": 0.0, "choices": [choice(f" word{i}", 1.0, True)]} for i in range(96)]
    options[0]["explored"][0]["positions"] += long
    options[0]["explored"] += looked_at(ATTACK, ATTACK, question=ATTACK)["explored"]
    options[0] |= {"usage": [[0.1] * 96] * 10, "entropy": [[math.sin(i) ** 2 for i in range(96)]] * 32}
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, summary_of(*rows), curves, samples, options)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    """The report, opened from disk. It must neither log to the console nor request anything."""
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    messages: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda asking: asked.append(asking.url))
    page.goto(report.as_uri())
    yield page
    page.close()
    assert messages == []
    assert asked == [report.as_uri()]


def test_two_hundred_completions_stay_below_five_megabytes(report: Path) -> None:
    assert report.read_text().count("<article") == 200
    assert report.stat().st_size < 5_000_000


def test_two_hundred_completions_stay_within_fifteen_screens(browser: Any, report: Path) -> None:
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
    page.goto(report.as_uri())
    height = page.evaluate("document.documentElement.scrollHeight")
    page.close()
    assert height <= 15 * 900


def test_a_click_on_a_token_shows_its_options_and_where_they_lead(page: Any) -> None:
    explorer = page.locator(".explorer").first
    tokens, panel = explorer.locator(".token"), explorer.locator(".choices")
    assert "the options lead to 2 tokens" in panel.inner_text()  # the least certain token is shown at first
    assert "option 0 75.0 % 50.0 %" in " ".join(panel.inner_text().split())
    assert "It is It ✗ wrong" in panel.inner_text()
    tokens.nth(1).click()
    assert [tokens.nth(i).get_attribute("aria-pressed") for i in (0, 1)] == ["false", "true"]
    assert "Token 2 of 98: all options lead to this token" in panel.inner_text()
    assert "wrong" not in panel.inner_text()
    tokens.nth(0).press("Enter")  # and from the keyboard
    assert "It is It ✗ wrong" in panel.inner_text()


def test_markup_in_what_a_model_wrote_is_shown_and_not_run(page: Any) -> None:
    attacked = page.locator(".explorer", has_text="window.attacked").first
    attacked.locator("summary").click()
    attacked.locator(".token").first.click()
    assert ATTACK in attacked.locator(".choices").inner_text()
    page.locator(".problem summary", has_text="window.attacked").click()
    assert page.locator("article pre", has_text="window.attacked").inner_text().strip() == ATTACK
    assert page.evaluate("window.attacked") is None


def test_arrow_keys_go_from_token_to_token(page: Any) -> None:
    explorer = page.locator(".explorer").first
    tokens, panel = explorer.locator(".token"), explorer.locator(".choices")
    tokens.nth(3).click()
    page.keyboard.press("ArrowLeft")
    assert "Token 3 of 98" in panel.inner_text()
    page.keyboard.press("ArrowUp")  # to the live one before
    assert "Token 1 of 98" in panel.inner_text()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")  # there is none
    assert "Token 1 of 98" in panel.inner_text()
    page.keyboard.press("ArrowRight")
    assert "Token 2 of 98" in panel.inner_text()


def test_a_plot_tells_the_value_under_the_pointer(page: Any) -> None:
    plot = page.locator(".plot").nth(1)
    plot.scroll_into_view_if_needed()
    plot.hover()
    tip = plot.locator(".tip")
    assert "latent-ppo: 0.5 [0.5, 0.5] after 1,280 episodes" in tip.inner_text()
    page.mouse.move(1, 1)
    assert not tip.is_visible()


def test_only_problems_with_wrong_completions_can_be_shown(page: Any) -> None:
    problems = page.locator(".problem:visible")
    assert problems.count() == 67 and page.locator("article:visible").count() == 0
    page.locator(".filter button", has_text="wrong (1)").click()
    assert problems.count() == 1
    problems.locator("summary").click()
    assert page.locator("article:visible").count() == 4
    page.locator(".filter button", has_text="all (67)").click()
    assert problems.count() == 67


def test_nothing_has_to_be_scrolled_sideways(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((element) => { element.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_every_text_is_large_enough_to_be_read(page: Any) -> None:
    texts = page.evaluate(TEXTS)
    assert len(texts) > 1000
    assert [(text, size) for text, size in texts if size < SMALLEST] == []
