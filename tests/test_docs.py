"""What the documents say is true: examples run, files exist, commands are commands."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from conftest import toy_table
from potstill import cli
from potstill.study.loading import load_study, read_study
from potstill.study.run import prepare
from potstill.study.schema import QUICK

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "potstill"
DOCUMENTS = [path for path in sorted(ROOT.glob("*.md")) if path.name != "LOG.md"]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(*languages: str, text: str = README) -> list[str]:
    """Fenced blocks of a document, the README unless told, in one of the languages."""
    return [block for language, block in FENCE.findall(text) if language in languages]


def modules() -> Iterator[str]:
    """Modules with a doctest."""
    for path in sorted(SOURCE.rglob("*.py")):
        if ">>>" in path.read_text(encoding="utf-8"):
            parts = path.relative_to(SOURCE.parent).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("name", list(modules()))
def test_doctests(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0


def test_the_readme_shows_each_kind_of_example() -> None:
    for language in ("python", "toml", "sh"):
        assert blocks(language), f"no {language} block in the README"


@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples_run(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert "print(" not in code or capsys.readouterr().out.strip()


@pytest.mark.parametrize("text", blocks("toml"))
def test_toml_examples_are_studies(text: str, tmp_path: Path) -> None:
    """A block that holds recipes alone is read as a part of a small study."""
    table = tomllib.loads(text)
    if table.keys() == {"recipe"}:
        methods = list(table["recipe"])
        table = toy_table(tmp_path, train={"max_tokens": 64}, methods=methods) | table
    study = read_study(table)
    assert study.recipes and study.models


@pytest.mark.parametrize(
    "text", blocks("toml", text=(ROOT / "docs" / "where.md").read_text(encoding="utf-8"))
)
def test_places_to_run_are_parts_of_studies(text: str, models: Path) -> None:
    table = tomllib.loads(text)
    folder = models / "qwen"
    pair = {role: str(folder / role) for role in ("student", "teacher")}
    table.setdefault("train", {"learning_rate": 1e-4})
    study = read_study({**table, "pair": {"mine": pair}})
    assert study.engine.name == table["engine"]["name"] and study.recipes


@pytest.mark.parametrize(
    "text", blocks("toml", text=(ROOT / "docs" / "tracking.md").read_text(encoding="utf-8"))
)
def test_tracked_studies_are_studies(text: str) -> None:
    assert read_study(tomllib.loads(text)).track


def commands() -> Iterator[str]:
    """Lines of the documents' shell blocks, and lines of code that name a command."""
    for path in DOCUMENTS:
        document = path.read_text(encoding="utf-8")
        for language, text in FENCE.findall(document):
            if language in ("sh", "bash", "console"):
                yield from (line.removeprefix("$ ") for line in text.splitlines() if line)
        yield from re.findall(r"`((?:potstill|make) [^`]+)`", document)


@pytest.mark.parametrize("line", list(dict.fromkeys(commands())))
def test_commands_are_commands(line: str) -> None:
    """Each is parsed by the real command line: names, options and the number of words."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = re.findall(r"^([\w-]+):", makefile, re.MULTILINE)
        assert all(word in targets or "=" in word for word in words[1:]), line
        return
    if words[0] != "potstill":
        return
    command = typer.main.get_command(cli.app)
    words = words[1:]
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, line
        command, words = command.commands[words[0]], words[1:]
    required = [p for p in command.params if p.required]
    if words or not required:  # a command named without its words is a mention
        command.make_context(line, words)


def tree() -> Iterator[tuple[Path, str]]:
    """Paths of the README's file tree with their descriptions."""
    (text,) = [t for language, t in FENCE.findall(README) if not language and "src/potstill" in t]
    folder = ROOT
    for line in text.splitlines():
        names, _, description = line.strip().partition("  ")
        if not line.startswith(" "):
            folder = ROOT / names if names.startswith("src") else ROOT
        for name in names.split(", "):
            yield (ROOT if not line.startswith(" ") else folder) / name, description


@pytest.mark.parametrize(("path", "description"), list(tree()))
def test_the_file_tree_is_there(path: Path, description: str) -> None:
    assert path.exists()
    for name in re.findall(r"\b\w+\.py\b", description):
        assert (path / name).is_file()


def test_the_file_tree_leaves_out_no_module() -> None:
    shown = {path for path, _ in tree()}
    found = {path for path in SOURCE.iterdir() if not path.name.startswith(("_", "."))}
    assert found <= shown, sorted(path.name for path in found - shown)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_files_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.toml")), ids=lambda p: p.name)
def test_studies_that_come_with_potstill_are_right(path: Path) -> None:
    study = load_study(path)
    assert study.name == path.stem and study.recipes and study.models
    if study.task["name"] == "arithmetic":  # others need files that are not here
        prepare(study)


def test_the_quick_study_is_the_file_of_that_name() -> None:
    assert load_study(ROOT / "studies" / "quick.toml").to_toml() == read_study(QUICK).to_toml()


def test_texts_name_no_place_of_one_machine() -> None:
    """Spelled in two parts, so that this file does not name them either."""
    words = ["/" + "work/", "farm" + "-"]
    paths = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "LOG.md", "Makefile")]
    for folder in ("src", "tests", "studies", "docs", "servers", "benchmarks"):
        paths += (ROOT / folder).rglob("*")
    suffixes = {".md", ".py", ".toml", ".css", ".js", ".j2", ".json", ".jinja", ""}
    for path in paths:
        inside = {"__pycache__", "potstill.egg-info"} & {*path.parts}
        if path.is_file() and path.suffix in suffixes and not inside:
            text = path.read_text(encoding="utf-8")
            assert not [word for word in words if word in text], path
