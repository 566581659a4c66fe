"""README and docs are true: examples run, commands parse, studies read, lists are complete.

The site as a whole is in `test_site.py`, the notebook in `test_notebook.py`.
"""

from __future__ import annotations

import doctest
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import potstill
from conftest import toy_table
from potstill import cli, settings
from potstill.algorithms.losses import LOSSES
from potstill.algorithms.methods import METHODS
from potstill.diagnostics.faults import FAULTS
from potstill.engines import zoo
from potstill.study.loading import load_study, read_study
from potstill.study.run import prepare
from potstill.study.schema import QUICK, Study
from potstill.study.tracking.registry import TRACKERS
from potstill.tasks import TASKS
from potstill.types import ModelSpec

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "potstill"
DOCS = ROOT / "docs"
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
DOCUMENTS = [*(ROOT / name for name in PAGES), *sorted(DOCS.glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"python", "toml", "sh", "json", "text"}
# Programs that the documents mention and that do not come with potstill.
FOREIGN = {"pip", "wandb", "tensorboard", "mlflow", "trackio", "export", "kill"}


def page(name: str) -> str:
    """A page of docs/."""
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(*languages: str) -> list[Any]:
    """Fenced blocks of all documents in the given languages, as cases of a test."""
    return [
        pytest.param(block, id=f"{path.name}-{number}")
        for path in DOCUMENTS
        for number, (language, block) in enumerate(FENCE.findall(path.read_text("utf-8")))
        if language in languages
    ]


def test_blocks_have_a_language_that_is_tested() -> None:
    for path in DOCUMENTS:
        for language, block in FENCE.findall(path.read_text(encoding="utf-8")):
            assert language in LANGUAGES, f"{path.name}: {block[:60]}"


def test_the_readme_shows_each_kind_of_example() -> None:
    shown = {language for language, _ in FENCE.findall(README)}
    assert shown >= {"python", "toml", "sh", "text"}


def test_the_readme_is_one_screen_long() -> None:
    assert 110 <= len(README.splitlines()) <= 130
    assert len(README.split()) < 900
    (python,), (toml,) = (
        [block for language, block in FENCE.findall(README) if language == want]
        for want in ("python", "toml")
    )
    assert len([line for line in python.splitlines() if line.strip()]) <= 8
    assert len([line for line in toml.splitlines() if line.strip()]) <= 12


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


@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples_run(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "example"})
    assert "print(" not in code or capsys.readouterr().out.strip()


@pytest.mark.parametrize("text", blocks("toml"))
def test_toml_examples_are_studies(
    text: str, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that shows a part of a study is completed; nothing that it shows is replaced."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine.py", "grader.py"):  # of graders.md and own-job.md
        (tmp_path / name).write_text("def grade(completion): return True\n")
    shown = tomllib.loads(text)
    table = dict(shown)
    if shown.get("eval", {}).get("lm_eval"):  # of evaluation.md
        pytest.importorskip("lm_eval")
        (tmp_path / "tasks").mkdir()
        (tmp_path / "tasks" / "ours.yaml").write_text("task: ours\n")
        (tmp_path / "wiki.txt").write_text("A text.\n")
    if shown.keys() == {"recipe"}:
        methods = list(shown["recipe"])
        table = toy_table(tmp_path, train={"max_tokens": 64}, methods=methods) | shown
    elif not shown.keys() & {"pair", "pairs"}:
        folder = models / "qwen"
        pair = {role: str(folder / role) for role in ("student", "teacher")}
        table |= {"pair": {"mine": pair}, "train": {"learning_rate": 1e-4}}
    for pair in table.get("pair", {}).values():
        for role in {"student", "teacher"} & pair.keys():
            if str(pair[role]).removeprefix("../").startswith("runs/"):  # an earlier command's
                pair[role] = zoo.folder("tiny-llama", role)
    study = read_study(table)
    assert study.recipes and study.models
    assert shown.keys() <= study.to_toml().keys()


@pytest.mark.parametrize("text", blocks("json"))
def test_json_examples_are_problems(text: str, tmp_path: Path) -> None:
    from potstill.tasks import load_task

    lines = [json.loads(line) for line in text.splitlines()]
    assert lines
    path = tmp_path / "train.jsonl"
    path.write_text(text)
    task = load_task("jsonl", train_path=str(path), test_path=str(path), match="numeric")
    assert len(task.train) == len(lines)


def commands() -> Iterator[str]:
    """Lines of the documents' shell blocks, and lines of code that name a command."""
    for path in DOCUMENTS:
        document = path.read_text(encoding="utf-8")
        for language, text in FENCE.findall(document):
            if language == "sh":
                yield from (line for line in text.splitlines() if line)
        prose = FENCE.sub("", document)
        for line in re.findall(r"`((?:potstill|make|python|pip|jupyter) [^`]+)`", prose):
            yield " ".join(line.split())


@pytest.mark.parametrize("line", list(dict.fromkeys(commands())))
def test_commands_are_commands(line: str) -> None:
    """Each line is parsed by the program that it names, or names files that exist."""
    words = shlex.split(line, comments=True)
    while "=" in words[0]:  # settings of the environment
        words = words[1:]
    if words[0] == "torchrun":
        words = words[words.index("-m") + 1 :]
    if words[0] == "potstill":
        check_potstill(line, words[1:])
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = re.findall(r"^([\w-]+):", makefile, re.MULTILINE)
        assert all(word in targets or "=" in word for word in words[1:]), line
    elif words[:2] == ["python", "-m"]:
        assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file(), line
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), line
    elif "/" in words[0]:
        assert (ROOT / words[0]).is_file(), line
    else:
        assert words[0] in FOREIGN, line
    if words[0] == "pip":
        extras = {extra for found in re.findall(r"\[(.+?)\]", line) for extra in found.split(",")}
        assert extras <= PYPROJECT["project"]["optional-dependencies"].keys(), line


def check_potstill(line: str, words: list[str]) -> None:
    """Parse a command with the real command line: names, options and the number of words."""
    command: Any = typer.main.get_command(cli.app)
    words = [word for word in words if word != "--help"]
    while hasattr(command, "commands") and words:
        assert words[0] in command.commands, line
        command, words = command.commands[words[0]], words[1:]
    if hasattr(command, "commands"):  # the program itself
        return
    required = [p for p in command.params if p.required]
    if words or not required:  # a command named without its words is a mention
        command.make_context(line, words)


def test_every_command_is_listed() -> None:
    command: Any = typer.main.get_command(cli.app)
    names = [
        f"potstill {name} {inner}".strip()
        for name, one in command.commands.items()
        if not one.hidden
        for inner in getattr(one, "commands", [""])
    ]
    assert len(names) > 10
    listed = page("commands.md")
    assert not [name for name in names if f"`{name}" not in listed]


@pytest.mark.parametrize(
    ("name", "listed", "known"),
    [
        ("methods.md", METHODS, METHODS),
        ("../README.md", METHODS, METHODS),
        ("published.md", [f.name for f in FAULTS.values() if f.published], FAULTS),
        ("tracking.md", TRACKERS, TRACKERS),
        ("data.md", TASKS, TASKS),
    ],
)
def test_tables_have_a_row_for_each(name: str, listed: list[str], known: dict[str, Any]) -> None:
    rows = re.findall(r"^\| `(\w+)`", page(name), re.MULTILINE)
    assert set(listed) <= set(rows), name
    assert set(listed) <= set(known)


def test_losses_and_fields_of_a_recipe_are_explained() -> None:
    text = page("methods.md")
    public = set(LOSSES) - {"truncated_reverse_kl"}  # a fault's
    assert not [name for name in public if name not in text]
    fields = set(METHODS["hybrid"].__dataclass_fields__) - {"name", "hypothesis", "rule", "source"}
    assert not [name for name in fields if f"| `{name}` |" not in text]


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("Top level", Study),
        ("`[pair.NAME]`", settings.Pair),
        ("`[train]`", settings.Train),
        ("`[eval]`", settings.Eval),
        ("`[engine]`, torch", settings.TorchSettings),
        ("`engine.student`", ModelSpec),
        ("`[engine]`, tinker", settings.TinkerSettings),
        ("`[price]`", settings.Price),
        ("`[budget]`", settings.Budget),
        ("`[ray]`", settings.RaySettings),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_key_of_a_study_file_is_documented(heading: str, table: Any) -> None:
    """With its default, where the page has a column for it."""
    rows = _section(heading)
    fields = getattr(table, "model_fields", None) or table.__dataclass_fields__
    names = [name for name in fields if not (name == "name" and table is not Study)]
    assert names
    for name in names:
        (row,) = [row for row in rows if f"`{name}`" in row[0]]
        default = fields[name].default
        if len(row) == 3 and isinstance(default, bool | int | float | str) and default != "":
            told = str(default).lower() if isinstance(default, bool) else str(default)
            assert row[1].strip("`") in (told, "the file's name"), f"{name}: {default!r}"


def _section(heading: str) -> list[list[str]]:
    """The rows of the first table after a heading, or after a line that begins with it."""
    text = page("study-file.md")
    start = re.search(rf"^(?:## )?{re.escape(heading)}", text, re.MULTILINE)
    assert start, heading
    table = re.search(r"^\|.*?(?=\n\n|\Z)", text[start.end() :], re.MULTILINE | re.DOTALL)
    assert table, heading
    lines = table.group().strip().splitlines()[2:]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines]


def test_every_extra_is_listed() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert not [name for name in extras if f"`{name}`" not in page("quickstart.md")]


def test_the_reference_has_every_public_name() -> None:
    """At the place where `potstill` finds it; losses without settings are named in a sentence."""
    text = page("api.md")
    for name in potstill.__all__:
        place = f"::: potstill.{potstill._NAMES[name]}.{name}\n"
        assert place in text or (name.isupper() and f"`{name}`" in text), name


def test_the_architecture_has_every_package() -> None:
    text = page("architecture.md")
    packages = [path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()]
    assert len(packages) == 10
    folders = ["studies", "notebooks", "servers", "benchmarks", "tests", "docs"]
    assert not [name for name in packages if not re.search(rf"^ *{name} ", text, re.MULTILINE)]
    assert not [name for name in folders if not re.search(rf"^{name}/ ", text, re.MULTILINE)]
    assert all((ROOT / name).is_dir() for name in folders)


PLACES = re.compile(r"(?<![\w/.])(?:src|tests|studies|docs|benchmarks|servers|notebooks)/[\w./*-]*")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for place in PLACES.findall(text):
        assert list(ROOT.glob(place.rstrip("./"))), place


def made(path: Path) -> list[str]:
    """Models in place of those that `make real` makes."""
    if path.name != "recover.toml":
        return []
    return [f"pair.smollm2-cut.{r}={zoo.folder('tiny-llama', r)}" for r in ("student", "teacher")]


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.toml")), ids=lambda p: p.name)
def test_studies_that_come_with_potstill_are_right(path: Path) -> None:
    study = load_study(path, made(path))
    assert study.name == path.stem and study.recipes and study.models
    if study.task["name"] == "arithmetic":  # others need files that are not here
        prepare(study)


def test_the_quick_study_is_the_file_of_that_name() -> None:
    assert load_study(ROOT / "studies" / "quick.toml").to_toml() == read_study(QUICK).to_toml()


def test_texts_name_no_place_of_one_machine() -> None:
    """The words are in two parts, so that this file does not contain them either."""
    words = ["/" + "work/", "farm" + "-"]
    paths = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "LOG.md", "Makefile")]
    for folder in ("src", "tests", "studies", "docs", "servers", "benchmarks", "notebooks"):
        paths += (ROOT / folder).rglob("*")
    suffixes = {".md", ".py", ".toml", ".css", ".js", ".j2", ".json", ".jinja", ".ipynb", ""}
    for path in paths:
        inside = {"__pycache__", "potstill.egg-info"} & {*path.parts}
        if path.is_file() and path.suffix in suffixes and not inside:
            text = path.read_text(encoding="utf-8")
            assert not [word for word in words if word in text], path
