"""The pages in a real browser: what a reader does, and what a hostile text cannot do.

Debian's Chromium, headless, driven by Playwright. Where either is missing the tests are skipped;
`make test-browser` installs both. `benchmarks/page.py` measures how long a reader waits.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.page import CHROMIUM, launch

from potstill.algorithms.methods import METHODS
from potstill.report import write_report
from potstill.report.compare import compare
from potstill.report.pages.comparison import write_comparison
from potstill.study.storage import RunId, StudyFolder
from studies import HOSTILE, Fate, small_study, write_study

pytestmark = pytest.mark.browser


class Reader:
    """A page with everything that it complained about or asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.wrong: list[str] = []
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", self._heard)
        page.on("request", self._asked)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "blob:", "data:")):
            self.wrong.append(request.url)

    def open(self, path: Path) -> Any:
        self.page.goto(path.as_uri())
        return self.page

    def until(self, expression: str) -> None:
        """Wait until it holds. Not Playwright's own wait: that evaluates inside the page, where
        the policy forbids it."""
        for _ in range(600):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never: {expression}")

    def draw(self, *names: str) -> None:
        """Scroll to charts of the first pair until they are drawn; without names, draw all."""
        self.until("Boolean(window.vegaEmbed)")
        if not names:
            self.page.evaluate("potstill.drawAll()")
            self.until("[...document.querySelectorAll('.plot')].every(p => p.querySelector('svg'))")
        for name in names:
            plot = f"""document.querySelector('figure[data-name="{name}"] .plot')"""
            self.page.evaluate(f"{plot}.scrollIntoView({{ behavior: 'instant' }})")
            self.until(f"Boolean({plot}.querySelector('svg'))")

    def shown(self, name: str, key: str = "method") -> set[str]:
        """Methods (or parts) whose marks a chart draws, in every pair."""
        plots = f"""[...document.querySelectorAll('figure[data-name="{name}"] .plot')]"""
        marks = ".flatMap(plot => [...plot.querySelectorAll('[class^=mark-] path')])"
        records = f".map(mark => mark.__data__?.datum?.{key}).filter(Boolean)"
        return set(self.page.evaluate(plots + marks + records))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no chromium on this machine: make test-browser installs it")
    with sync.sync_playwright() as playwright:
        found = launch(playwright)
        yield found
        found.close()


@pytest.fixture
def reader(browser: Any, request: pytest.FixtureRequest) -> Iterator[Reader]:
    """A new profile on a desktop, or with the options that the test asks for."""
    options = {"viewport": {"width": 1400, "height": 900}, **getattr(request, "param", {})}
    context = browser.new_context(**options)
    found = Reader(context.new_page())
    yield found
    context.close()
    assert found.wrong == []


def fate(cell: RunId) -> Fate:
    return {
        ("mixture", 0): {"text": HOSTILE},
        ("replay_buffer", 1): {"fail": f"not a number at step 3: {HOSTILE[:200]}"},
        ("hybrid", 1): {"null": True},
        ("kl_anchored", 0): {"skip": True},
        ("off_policy", 1): {"stop": 3},
    }.get((cell.method, cell.seed), {})


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine methods, two pairs, two seeds; hostile, failed, absent and half-finished cells."""
    path = tmp_path_factory.mktemp("browser") / "study"
    pairs = ["tiny-qwen", "tiny-llama"]
    study = small_study(pairs=pairs, methods=list(METHODS), published="distribution-cliff")
    write_study(path, study, fate)
    return write_report(path).html


@pytest.mark.smoke
def test_every_chart_draws_and_nothing_leaves(reader: Reader, report: Path) -> None:
    page = reader.open(report)
    reader.draw()
    assert page.locator(".plot svg.marks").count() == 28


def test_hostile_text_is_seen_and_does_not_run(reader: Reader, report: Path) -> None:
    page = reader.open(report)
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None
    texts = page.locator("pre", has_text="window.hacked = 1").first
    assert "⟨U+202E⟩gnitrow⟨U+0007⟩⟨U+0000⟩" in texts.inner_text()
    for tag in ("img", "pre svg", "a[href^=javascript]", "iframe"):
        assert page.locator(tag).count() == 0
    # and if something did get in, the policy would not run it
    page.evaluate("""() => {
        const script = document.createElement('script');
        script.textContent = 'window.hacked = 2';
        document.body.append(script);
    }""")
    assert page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in text for text in reader.wrong)
    reader.wrong.clear()


def test_a_column_sorts_both_ways_by_mouse_and_keyboard(reader: Reader, report: Path) -> None:
    page = reader.open(report)
    table = page.locator("#methods-1")
    head = table.locator("thead th").nth(1)

    def column() -> list[float]:
        cells = table.locator("tbody.rows tr td:nth-child(2)").all()
        return [float(value) for cell in cells if (value := cell.get_attribute("data-value"))]

    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column() == sorted(column(), reverse=True) and len(column()) == 9
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending" and column() == sorted(column())
    assert table.locator("[aria-sort]").count() == 1
    ends = [
        row.get_attribute("data-method") for row in table.locator("tbody").first.locator("tr").all()
    ]
    assert ends == ["untrained", "teacher"]
    heads = table.locator("thead th").all_inner_texts()
    last = next(i for i, text in enumerate(heads) if "vs on_policy_gkd" in text)
    table.locator("thead th button").nth(last).click()
    rows = table.locator("tbody.rows tr").all()
    assert rows[-1].get_attribute("data-method") == "on_policy_gkd"  # has none: last


def test_a_table_filters(reader: Reader, report: Path) -> None:
    page = reader.open(report)
    page.locator(".filter").first.fill("on_policy")
    rows = page.locator("#methods-1 tbody.rows tr:visible")
    assert rows.count() == 2
    page.locator(".filter").first.fill("no such method")
    assert rows.count() == 0
    page.locator(".filter").first.fill("")
    assert rows.count() == 9


def test_one_click_isolates_a_method_everywhere(reader: Reader, report: Path) -> None:
    page = reader.open(report)
    names = ("eval-accuracy", "train-score", "accuracy", "solved", "accuracy-by-tokens")
    reader.draw(*names, "seeding-effect", "train-loss")
    everything = reader.shown("eval-accuracy")
    assert len(everything) == 11
    page.locator(".chip .only", has_text="hybrid").click()
    for name in names:
        assert reader.shown(name) - {"untrained", "teacher", ""} == {"hybrid"}, name
    blank = page.locator("figure.blank").evaluate_all("all => all.map(f => f.dataset.name)")
    assert {*blank} <= {"seed-tokens", "seeding-effect"} and "seeding-effect" in blank
    for table in ("#methods-1", "#methods-2", "[aria-label^=Cost] table", ".texts"):
        rows = page.locator(f"{table} >> nth=0").locator("tr[data-method]:visible").all()
        methods = {row.get_attribute("data-method") for row in rows}
        assert methods - {"untrained", "teacher"} == {"hybrid"}, table
    page.locator(".chip .only", has_text="hybrid").click()
    assert reader.shown("eval-accuracy") == everything
    page.locator("#methods-2 .name", has_text="mixture").click()
    assert reader.shown("train-loss") == {"mixture"}
    page.keyboard.press("Escape")
    assert reader.shown("eval-accuracy") == everything


def test_a_click_on_a_chart_isolates_and_the_legend_toggles(reader: Reader, report: Path) -> None:
    page = reader.open(report)
    reader.draw("accuracy", "train-loss", "train-score")
    page.evaluate("""() => {
        const marks = document.querySelectorAll('figure[data-name="accuracy"] .mark-symbol path');
        const mark = [...marks].find((node) => node.__data__.datum.method === 'mixture');
        mark.dispatchEvent(new MouseEvent('click', { bubbles: true }));
    }""")
    assert reader.shown("train-loss") == {"mixture"}
    page.locator("#reset").click()
    eye = page.locator('.chip[data-method="mixture"] .eye')
    eye.click()
    assert eye.get_attribute("aria-pressed") == "false"
    assert "mixture" not in reader.shown("train-loss") and len(reader.shown("train-loss")) > 5
    eye.click()
    assert "seed" in reader.shown("train-score", "part")
    page.locator("#seeds").click()
    assert reader.shown("train-score", "part") == {"mean"}


def test_the_theme_follows_the_system_and_the_button(reader: Reader, report: Path) -> None:
    page = reader.page
    page.emulate_media(color_scheme="dark")
    reader.open(report)
    reader.draw("accuracy")

    def colours() -> tuple[str, str]:
        return tuple(
            page.evaluate("""() => [getComputedStyle(document.body).backgroundColor,
            getComputedStyle(document.querySelector('.plot svg text')).fill]""")
        )

    dark = colours()
    page.emulate_media(color_scheme="light")
    reader.until(f"getComputedStyle(document.body).backgroundColor != {dark[0]!r}")
    light = colours()
    assert dark != light and dark[1] != light[1]
    button = page.locator("#theme")
    for name, expected in (("light", light), ("dark", dark), ("system", light), ("light", light)):
        button.click()
        assert button.inner_text() == f"theme: {name}" and colours() == expected
    page.reload()
    assert button.inner_text() == "theme: light"  # remembered


def test_paper_is_white_and_holds_every_chart(reader: Reader, report: Path) -> None:
    page = reader.page
    page.emulate_media(color_scheme="dark")
    reader.open(report)
    reader.until("Boolean(window.vegaEmbed)")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".plot svg.marks").count() == 28
    style = "getComputedStyle(document.querySelector('main > section')).backgroundColor"
    assert page.evaluate(style) == "rgb(255, 255, 255)"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(style) != "rgb(255, 255, 255)"


@pytest.mark.parametrize(
    "reader", [{"viewport": {"width": 360, "height": 740}, "has_touch": True}], indirect=True
)
def test_a_phone_scrolls_down_only(reader: Reader, report: Path) -> None:
    page = reader.open(report)
    reader.draw()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    wide = page.evaluate("""() => [...document.querySelectorAll('main *')].filter(e =>
        !e.closest('.scroll, .plot, svg') && e.getBoundingClientRect().right > 361)
        .map(e => e.outerHTML.slice(0, 80))""")
    assert wide == []


def saved(page: Any, button: Any) -> tuple[str, list[dict[str, str]]]:
    with page.expect_download() as found:
        button.click()
    text = Path(found.value.path()).read_text(encoding="utf-8")
    return found.value.suggested_filename, list(csv.DictReader(io.StringIO(text)))


def test_charts_and_tables_are_saved_as_csv(reader: Reader, report: Path) -> None:
    page = reader.open(report)
    section = page.locator("#pair-1")
    name, rows = saved(page, section.locator('figure[data-name="train-score"] .csv'))
    assert name == "tiny-qwen-train-score.csv"
    seeds = [r for r in rows if r["method"] == "on_policy_gkd" and r["part"] == "seed"]
    assert {r["seed"] for r in seeds} == {"0", "1"}
    place = StudyFolder(report.parent).cell(RunId("tiny-qwen", "on_policy_gkd", 1))
    recorded = [r["train/score"] for r in place.metrics if "train/score" in r]
    mine = [float(r["score, 0 to 1"]) for r in seeds if r["seed"] == "1"]
    assert mine == pytest.approx(recorded, rel=1e-3)
    _, rows = saved(page, section.locator('figure[data-name="accuracy"] .csv'))
    table = json.loads((report.parent / "results.json").read_text())["table"]
    want = next(r for r in table if (r["pair"], r["method"]) == ("tiny-qwen", "hybrid"))
    (got,) = [r for r in rows if (r["method"], r["part"]) == ("hybrid", "mean")]
    for key, ours in (("accuracy, strict, %", "mean"), ("low", "low"), ("high", "high")):
        assert float(got[key]) == pytest.approx(100 * want["accuracy"][ours], abs=0.02)
    _, rows = saved(page, section.locator('figure[data-name="solved"] .csv'))
    solved = {
        int(r["problem"]): float(r["share of seeds"]) for r in rows if r["method"] == "hybrid"
    }
    assert sorted(solved) == list(range(1, 41)) and {0.0, 1.0} <= set(solved.values())
    name, rows = saved(page, section.locator("[data-table]"))
    assert name == "methods-tiny-qwen.csv" and len(rows) == 11
    assert page.evaluate("potstill.csv([['=1+1', -2, 'a\"b,c', null]])") == '\'=1+1,-2,"a""b,c",\n'


def test_a_comparison_works_the_same(reader: Reader, report: Path, tmp_path: Path) -> None:
    write_study(tmp_path / "<b>other", small_study(seeds=[0, 1, 2]))
    page = reader.open(
        write_comparison(compare([report.parent, tmp_path / "<b>other"]), tmp_path / "c.html")
    )
    reader.draw("accuracy", "difference")
    assert (
        page.locator(".plot svg.marks").count() == 2
        and page.locator("b", has_text="other").count() == 0
    )
    page.locator(".chip .only", has_text="hybrid").click()
    assert reader.shown("difference") == {"hybrid", "untrained", "teacher"}
    page.locator("#table-1 thead button").nth(2).click()
    assert page.locator("[aria-sort=descending]").count() == 1


@pytest.mark.parametrize("kind", ["nothing", "one cell", "every cell failed"])
def test_poor_studies_are_whole_pages(reader: Reader, tmp_path: Path, kind: str) -> None:
    told: Fate = {
        "nothing": {"skip": True},
        "one cell": {},
        "every cell failed": {"fail": HOSTILE},
    }[kind]
    study = small_study(methods=["mixture"], seeds=[0])
    write_study(tmp_path, study, lambda cell: {} if kind == "one cell" else told)
    reader.open(write_report(tmp_path).html)
    if reader.page.locator(".plot").count():
        reader.draw()
    assert reader.page.locator("#verdict .answer").count() == 4


def test_a_large_study_is_one_small_file_that_draws(reader: Reader, tmp_path: Path) -> None:
    """160 runs of 100 steps, as in the published grid."""
    study = small_study(
        pairs=["tiny-qwen", "tiny-llama"],
        methods=[name for name in METHODS if name != "off_policy"],
        seeds=list(range(10)),
        train={"steps": 100, "max_tokens": 32},
        eval={"every": 50, "problems": 500, "probe_every": 5},
    )
    write_study(tmp_path, study)
    html = write_report(tmp_path).html
    assert html.stat().st_size < 5e6
    reader.open(html)
    reader.draw()
    assert reader.page.locator(".plot svg.marks").count() == 20
    assert reader.shown("train-loss") >= set(study.methods)
