"""How large a report is, and how long a reader waits for it.

    python -m benchmarks.page runs/full/report.html

Opens it in a headless Chromium with an empty cache, each time in a new process of the browser, and
prints medians with their range: until the words and tables are on the screen, until the document is
read, until the first chart is drawn after the reader has jumped to it, and until all are, as for
paper.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
READ = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
FIRST = "Boolean(document.querySelector('.plot svg'))"
EVERY = "[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('svg'))"


def opened(page: Any, html: Path) -> dict[str, float]:
    """Seconds from the request of a page on."""
    start = time.perf_counter()
    page.goto(html.resolve().as_uri())
    found = {}
    if page.locator(".plot").count():
        page.evaluate("document.querySelector('.plot').scrollIntoView({ behavior: 'instant' })")
        found["first chart"] = _until(page, FIRST) - start
        if page.evaluate("typeof potstill === 'object'"):  # else an older version's page
            page.evaluate("potstill.drawAll()")
            found["every chart"] = _until(page, EVERY) - start
    words = {name: page.evaluate(js) / 1000 for name, js in (("words", PAINT), ("read", READ))}
    return {**words, **found}


def _until(page: Any, expression: str) -> float:
    """When it holds; asked from outside, as the page's policy forbids evaluation inside."""
    while not page.evaluate(expression):
        page.wait_for_timeout(10)
    return time.perf_counter()


def launch(playwright: Any) -> Any:
    """A headless Chromium; a container's root has no sandbox."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("html", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    for html in args.html:
        times: list[dict[str, float]] = []
        with sync_playwright() as playwright:
            for _ in range(args.repeats):
                browser = launch(playwright)
                times.append(opened(browser.new_page(), html))
                browser.close()
        print(f"{html}: {html.stat().st_size / 1e6:.2f} MB, load {os.getloadavg()[0]:.1f}")
        for name in times[0]:
            known = sorted(found[name] for found in times)
            middle = statistics.median(known)
            print(f"  {name}: {middle:.2f} s ({known[0]:.2f} to {known[-1]:.2f})")


if __name__ == "__main__":
    main()
