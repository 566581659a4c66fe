"""Plain words in code, documents and study files: a list of words to avoid, with what to write.

`python tests/test_words.py` prints every place, exempt packages included, and a count of each. It
reads prose: documents without their code, docstrings, comments, and strings that are sentences.
Names on disk (`cells/`, keys of result.json) are no prose. LOG.md is history and is left alone.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "potstill"

# Packages and modules of src/potstill that still have to be rewritten.
EXEMPT: tuple[str, ...] = ()
# Names of fields on disk and in JSON, which stay.
ON_DISK = {("types.py", "found"), ("check.py", "cells"), ("results.py", "cells")}
# Names that several classes still have.
SHARED: frozenset[str] = frozenset()

# Words and phrases in prose, in any case; white space and line ends count as one blank.
PROSE: dict[str, str] = {
    r"(?<!table )(?<!notebook )(?<!code )\bcells?\b(?!/)": "run (a cell of a table: table cell)",
    r"\bgradings?\b": "evaluation",
    r"\bresume points?\b": "checkpoint",
    r"\breference rows?\b": "baselines",
    r"\bwhole rows?\b": "full-vocabulary log-probs",
    r"\b(?:teacher|student)(?:'s)? texts?\b": "the teacher's completions",
    r"\bbeside\b": "next to, in addition to",
    r"\bstands?\b(?! for\b| out\b|-)": "is",
    r"(?<!there )\b(?:is|are|was|were) no (?!longer\b|more\b|less\b|fewer\b|better\b|worse\b)"
    r"(?=\w)": "is not a",
    r"\beach by itself\b|\bby (?:themselves|himself)\b": "separately, alone",
    r"\bnought\b": "0",
    r"\b(?:numbers|names|places|models) that (?:is|are) none\b": "invalid, not finite",
    r"\bas it comes\b": "with default settings",
    r"\bforesaw\b": "predicted",
    r"\bcell hours?\b": "CPU-hours",
    r"\bno training\b(?! data| example| problem| step)": "the untrained student",
    r"\bcannot be told\b": "is unknown",
    r"\b(?:report|page|table|check|command|file|loop|loss|engine|server|service|study|run|recipe|"
    r"step|pre-flight|monitor|chart|verdict) (?:says?|said|tells?|told|asks?|asked|refuses?|"
    r"refused)\b": "prints, reports, requires, rejects: a thing does not speak",
    r"\bby its own (?:clock|hand)s?\b": "wall time, by hand",
    r"\b(?:the )?crew\b": "scheduler",
    r"\bloans?\b": "lease",
    r"\bunless told\b": "by default",
    r"\bnobody's\b": "not known, not needed",
}
# The first words of a docstring.
OPENINGS: dict[str, str] = {
    r"What\b": "a noun or a verb, not a clause",
    r"Whether\b": "True if ..., or a noun",
    r"How\b(?! many| much| often| long)": "a noun or a verb, not a clause",
}
CLASSES: dict[str, str] = {
    "Crew": "Scheduler",
    "Loan": "Lease",
    "Desk": "Context, Setup",
    "Beside": "Alignment",
    "Aside": "Unmetered",
    "Outlook": "Predictions",
    "Examiner": "Evaluator",
    "Judge": "Filter",
    "Briefing": "PromptBuilder",
    "Informed": "PrivilegedContext",
    "Known": "(a problem keeps its name)",
    "Led": "Leader",
    "Routed": "MultiTeacher",
    "Spelling": "TokenBytes",
    "Cell": "RunId",
    "CellFolder": "RunFolder",
}
MODULES = {"where", "listing", "trap", "papers", "points", "crew", "loan", "known", "briefing"}
VARIABLES: dict[str, str] = dict.fromkeys(
    ("told", "its", "mine", "found", "asked", "seen", "said", "wanted"), "what the value is"
)


@dataclass(frozen=True)
class Place:
    """A word to avoid, and what to write instead."""

    path: Path
    line: int
    word: str
    instead: str

    def __str__(self) -> str:
        return f'{self.path.relative_to(ROOT)}:{self.line}: "{self.word}": write {self.instead}'


Block = tuple[int, str]  # the line on which a text begins, and the text


def in_prose(path: Path, blocks: Iterator[Block]) -> Iterator[Place]:
    """Words of `PROSE` in texts."""
    for start, text in blocks:
        words = list(re.finditer(r"\S+", text))
        flat = " ".join(match.group() for match in words)
        ends = list(accumulate(len(match.group()) + 1 for match in words))
        for pattern, instead in PROSE.items():
            for match in re.finditer(pattern, flat, re.IGNORECASE):
                first = words[bisect_right(ends, match.start())]
                line = start + text.count("\n", 0, first.start())
                yield Place(path, line, match.group(), instead)


def blank(text: str, mark: str = " ") -> str:
    """The line ends of a text, so that what follows keeps its line number."""
    return re.sub(r"[^\n]", mark, text)


def without_code(text: str) -> str:
    """A text with its inline code, links' targets and doctests blanked."""
    text = re.sub(r"`[^`]*`", lambda m: blank(m.group(), "~"), text)
    text = re.sub(r"\]\([^)]*\)", lambda m: blank(m.group()), text)
    return re.sub(r"^ *>>>.*(?:\n.+)*", lambda m: blank(m.group()), text, flags=re.MULTILINE)


def comments(text: str) -> str:
    """What follows # on each line, the rest blanked."""
    return re.sub(r"^([^#\n]*)#?", lambda m: blank(m.group()), text, flags=re.MULTILINE)


def markdown(path: Path) -> Iterator[Block]:
    """A document: its prose, and the comments of its code."""
    text = path.read_text(encoding="utf-8")

    def code(match: re.Match[str]) -> str:
        body = match.group(2)
        shown = comments(body) if match.group(1) in ("sh", "toml", "python") else blank(body)
        return f"{blank(match.group(1))}\n{shown}"

    yield 1, without_code(re.sub(r"^```(\w*)\n(.*?)^```$", code, text, flags=re.M | re.S))


def toml(path: Path) -> Iterator[Block]:
    yield 1, without_code(comments(path.read_text(encoding="utf-8")))


def template(path: Path) -> Iterator[Block]:
    """An HTML template: its text without tags and expressions."""
    text = path.read_text(encoding="utf-8")
    yield 1, re.sub(r"\{[{%#].*?[}%#]\}|<[^>]*>", lambda m: blank(m.group()), text, flags=re.S)


DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(tree: ast.Module) -> Iterator[Block]:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            expression = node.body[0]
            assert isinstance(expression, ast.Expr) and isinstance(expression.value, ast.Constant)
            yield expression.lineno, expression.value.value


def sentences(tree: ast.Module) -> Iterator[Block]:
    """Strings that are sentences, f-strings with {} for each value."""
    documented = {line for line, _ in docstrings(tree)}
    inner = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(tree):
        text = None
        if id(node) not in inner and isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            text = "".join(map(str, parts))
        elif id(node) not in inner and isinstance(node, ast.Constant):
            text = node.value if isinstance(node.value, str) else None
        if text and text.count(" ") > 1 and node.lineno not in documented:
            yield node.lineno, text.replace("\n", " ")


def remarks(source: str) -> Iterator[Block]:
    """Comments; those on following lines are one text."""
    last, text, start = -1, "", 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            if text and line != last + 1:
                yield start, text
                text = ""
            start = start if text else line
            text += f"\n{token.string[1:]}" if text else token.string[1:]
            last = line
    if text:
        yield start, text


def python(path: Path) -> Iterator[Place]:
    """Everything that is checked of a module."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    texts = [*docstrings(tree), *sentences(tree), *remarks(source)]
    yield from in_prose(path, iter([(line, without_code(text)) for line, text in texts]))
    for line, text in docstrings(tree):
        for pattern, instead in OPENINGS.items():
            if match := re.match(pattern, text.strip()):
                yield Place(path, line, f"{match.group()} ...", instead)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name in CLASSES:
            yield Place(path, node.lineno, f"class {node.name}", CLASSES[node.name])
        for name, line in assigned(node):
            if name.strip("_") in VARIABLES:
                yield Place(path, line, name, VARIABLES[name.strip("_")])
    if path.stem in MODULES:
        yield Place(path, 1, path.name, "the field's word")


def assigned(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that a node gives a value: variables, attributes, arguments."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id, node.lineno
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr, node.lineno
    elif isinstance(node, ast.arg):
        yield node.arg, node.lineno


def places(path: Path) -> list[Place]:
    """The words to avoid in a file, in the order of its lines."""
    if path.suffix == ".py":
        return sorted(python(path), key=lambda place: place.line)
    read = {".md": markdown, ".toml": toml, ".j2": template}[path.suffix]
    return sorted(in_prose(path, read(path)), key=lambda place: place.line)


def sources() -> list[Path]:
    return sorted(p for p in SOURCE.rglob("*") if p.suffix in (".py", ".j2"))


def package(path: Path) -> str:
    """The part of `EXEMPT` that a file of src/potstill belongs to."""
    return path.relative_to(SOURCE).parts[0]


PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
DOCUMENTS = [*(ROOT / name for name in PAGES), *sorted((ROOT / "docs").glob("*.*"))]
TEXTS = [path for path in DOCUMENTS if path.suffix in (".md", ".py")]
TEXTS += sorted((ROOT / "studies").glob("*.toml"))
CHECKED = [*TEXTS, *(path for path in sources() if package(path) not in EXEMPT)]


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_plain_words(path: Path) -> None:
    wrong = [place for place in places(path) if (path.name, place.word) not in ON_DISK]
    assert not wrong, "\n".join(map(str, wrong))


def test_exempt_packages_exist() -> None:
    assert len(TEXTS) > 25 and sources()
    assert not [name for name in EXEMPT if not (SOURCE / name).exists()]


def test_no_two_classes_have_one_name() -> None:
    names = Counter(
        node.name
        for path in sources()
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert names
    assert {name for name, count in names.items() if count > 1} <= SHARED


@pytest.mark.parametrize(
    "text",
    [
        "Two cells at a time.",
        "The table stands in the README.",
        "This is\nno hub name.",
        "It keeps a resume point.",
        "a tool beside it",
        "methods end at nought",
        "losses of the teacher's texts",
        "The report says which.",
        "Evaluate each by itself.",
        "or in numbers that are none",
    ],
)
def test_the_list_catches(text: str) -> None:
    assert list(in_prose(ROOT / "x.md", iter([(1, text)])))


@pytest.mark.parametrize(
    "text",
    [
        "There is no network, and there\nis no server.",
        "It is no longer needed.",
        "A table cell and a notebook cell.",
        "The letter stands for the teacher.",
        "It understands standard input.",
        "The study reports a tie, and the table shows it.",
        "Read `cells/PAIR` and `potstill ls`.",
        "The upgraded server was degraded.",
    ],
)
def test_the_list_lets_pass(text: str) -> None:
    assert not list(in_prose(ROOT / "x.md", iter([(1, without_code(text))])))


def test_places_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""What is kept."""\n\n# one cell\nclass Crew:\n    def run(self, told):\n'
        '        its = f"{told} is no X here"\n        return its\n'
    )
    assert [(place.line, place.word) for place in places(path)] == [
        (1, "What ..."),
        (3, "cell"),
        (4, "class Crew"),
        (5, "told"),
        (6, "is no "),
        (6, "its"),
    ]
    page = tmp_path / "page.md"
    page.write_text("# One\n\n```sh\npotstill ls cells   # a grading\n```\n\n`cell` and\ncells\n")
    assert [(place.line, place.word) for place in places(page)] == [(4, "grading"), (8, "cells")]


if __name__ == "__main__":
    counts: Counter[str] = Counter()
    for path in [*TEXTS, *sources()]:
        for place in places(path):
            counts[package(path) if SOURCE in path.parents else "documents"] += 1
            print(place)
    print("\n".join(f"{count:5} {name}" for name, count in counts.most_common()))
