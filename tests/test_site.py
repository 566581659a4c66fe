"""The documentation site builds strictly, works offline, and links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
OUTSIDE = [ROOT / name for name in PAGES]  # read where they are, not on the site
DOCUMENTS = [*OUTSIDE, *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FETCHED = re.compile(r"<(?:script|img|iframe)[^>]+src=\"?https?:|<link[^>]+href=\"?https?:[^>]*css")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. mkdocs fails on dead links and anchors and on pages without a place."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        words, check=False, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_every_document_is_a_page(site: Path) -> None:
    pages = {path.stem for path in site.glob("*.html")}
    assert len(pages) > 20
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= pages
    assert {"log", "contributing", "security", "notebook"} <= pages
    assert not (site / "hooks.py").exists()


def test_no_page_fetches_anything(site: Path) -> None:
    pages = [path for path in site.glob("*.html") if path.name != "report-full.html"]
    assert pages
    for path in pages:
        assert not FETCHED.search(path.read_text(encoding="utf-8")), path.name


def test_the_reference_shows_signatures_arguments_and_doctests(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    assert 'id="potstill.training.loop.train"' in text
    assert "the task of the problems" in text  # an argument of open_engine
    assert "<code>&gt;&gt;&gt;" not in text and "linear" in text
    assert re.search(r'class="(?:language-pycon )?highlight"', text)


def test_pages_from_outside_docs_keep_their_links(site: Path) -> None:
    contributing = (site / "contributing.html").read_text(encoding="utf-8")
    assert 'href="architecture.html"' in contributing and 'href="security.html"' in contributing
    assert "data:image/png;base64," in (site / "notebook.html").read_text(encoding="utf-8")
    assert 'src="growth.svg"' in (site / "log.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_files_lead_somewhere(document: Path) -> None:
    """As a reader of the repository follows them, without the site."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if target.startswith(("http", "data:")):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name) if name else document
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target


def anchors(path: Path) -> set[str]:
    """Anchors of the headings of a document."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text("utf-8")), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles)
    return {re.sub(r"\s+", "-", title) for title in plain}
