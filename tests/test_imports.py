"""Who may import whom, read from the source: a package imports only packages below its own.

`python tests/test_imports.py` prints the graph of packages.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "potstill"
HEAVY = {
    "torch",
    "transformers",
    "tinker",
    "ray",
    "scipy.stats",
    "matplotlib",
    "plotly",
    "datasets",
    "peft",
    "wandb",
    "tensorboard",
    "trackio",
    "mlflow",
}

# The plan of the house, lowest first.
PACKAGES = (
    "urls",
    "interrupts",
    "errors",
    "digests",
    "caches",
    "fields",
    "types",
    "problems",
    "stats",
    "algorithms",
    "settings",
    "tasks",
    "engines",
    "training",
    "diagnostics",
    "study",
    "report",
    "cli",
)
# Modules that run on tensors, or that a command imports only when it runs.
TENSORS = re.compile(
    r"engines\.(torch|tinker|cross_tokenizer\.engine|zoo\.(build|save))\b"
    r"|study\.tracking\.(wandb|tensorboard|mlflow)"
)


def modules() -> dict[str, Path]:
    """Every module of potstill by its dotted name after `potstill.`."""
    found = {}
    for path in SRC.rglob("*.py"):
        parts = path.relative_to(SRC).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name or "__init__"] = path
    return found


ALL = modules()


def imports(path: Path, *, top: bool) -> set[str]:
    """Dotted names that a module imports; `top` leaves out those inside functions."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    if top:
        inner = {
            id(child)
            for node in nodes
            if isinstance(node, ast.FunctionDef)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
            for child in ast.walk(node)
        }
        nodes = [node for node in nodes if id(node) not in inner]
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(path: Path) -> set[str]:
    """Modules of potstill that a module imports, at its top, in functions or for types alone."""
    found = set()
    for name in imports(path, top=False):
        parts = name.split(".")[1:] if name.startswith("potstill.") else []
        while parts and ".".join(parts) not in ALL:
            parts = parts[:-1]
        if parts:
            found.add(".".join(parts))
    return found


def package(name: str) -> str:
    return name.split(".")[0]


def test_a_package_imports_only_packages_below_it() -> None:
    house = {
        name: path for name, path in ALL.items() if package(name) not in ("__init__", "__main__")
    }
    assert {package(name) for name in house} == set(PACKAGES)
    upward = [
        f"{name} imports {target}"
        for name, path in house.items()
        for target in own(path)
        if PACKAGES.index(package(target)) > PACKAGES.index(package(name))
    ]
    assert not upward


def circles() -> list[str]:
    """Modules in a circle of imports, lazy or not, and those that import one of them."""
    graph = {name: own(path) - {name} for name, path in ALL.items()}
    while leaves := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in leaves:
            del graph[name]
    return sorted(graph)


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert len(ALL) > 50
    assert circles() == []


def test_names_of_modules_say_what_they_hold() -> None:
    vague = {"utils", "common", "manager", "helpers", "misc"}
    assert not vague & {part for name in ALL for part in name.split(".")}


LIGHT = sorted(name for name in ALL if not TENSORS.match(name))


@pytest.mark.parametrize("name", LIGHT)
def test_heavy_libraries_are_imported_only_where_tensors_live(name: str) -> None:
    heavy = {target.split(".")[0] for target in imports(ALL[name], top=True)} & HEAVY
    assert not heavy, f"{name} imports {heavy} when it is loaded"


def test_reports_know_no_loop_and_no_engine() -> None:
    reports = [path for name, path in ALL.items() if package(name) == "report"]
    assert reports
    for path in reports:
        reached = {name for name in own(path) if not name.startswith("engines.zoo")}
        assert not {
            name
            for name in reached
            if package(name) == "engines" or name in ("training.loop", "study.run")
        }, path


def test_engines_know_no_recipe_and_the_loop_no_method_and_no_engine() -> None:
    engines = [path for name, path in ALL.items() if package(name) == "engines"]
    assert engines
    for path in engines:
        assert not own(path) & {"algorithms.recipe", "algorithms.methods"}, path
    text = (SRC / "training" / "loop.py").read_text()
    from potstill.algorithms.methods import METHODS
    from potstill.engines.registry import ENGINES

    assert not [name for name in METHODS if re.search(rf"\b{name}\b", text)]
    assert not [name for name in ENGINES if f'"{name}"' in text]
    (train,) = (n for n in ast.parse(text).body if getattr(n, "name", "") == "train")
    assert train.end_lineno - train.lineno + 1 <= 60


@pytest.mark.parametrize("name", sorted(ALL))
def test_functions_and_files_stay_small(name: str) -> None:
    text = ALL[name].read_text()
    tree = ast.parse(text)
    assert text.count("\n") <= 350
    assert ast.get_docstring(tree), "a module says what it is"
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    long = [node.name for node in functions if node.end_lineno - node.lineno >= 80]
    assert not long


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["ls", "methods"],
        ["ls", "engines"],
        ["check", "--no-preflight"],
        ["report", "--help"],
    ],
)
def test_the_command_line_starts_without_torch(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from potstill.cli import app\n"
        f"app({words!r}, standalone_mode=False)\n"
        f"print('loaded:', sorted({HEAVY!r} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("loaded: []")


def test_public_names_are_there_and_say_what_they_are() -> None:
    import potstill

    assert potstill.__all__
    for name in potstill.__all__:
        thing = getattr(potstill, name)
        assert not callable(thing) or thing.__doc__, name
    assert set(potstill.__all__) <= set(dir(potstill))


def graph() -> str:
    """Packages from the top down, and how many imports go from each to those below it."""
    arrows: Counter[tuple[str, str]] = Counter()
    for name, path in ALL.items():
        arrows.update({(package(name), package(target)) for target in own(path)})
    lines = []
    for upper in reversed(PACKAGES):
        below = [f"{lower}" for lower in PACKAGES if lower != upper and arrows[upper, lower]]
        lines.append(f"{upper:12} -> {', '.join(below) or '-'}")
    upward = [
        f"{a} -> {b}" for a, b in arrows if a in PACKAGES and PACKAGES.index(b) > PACKAGES.index(a)
    ]
    lines += [f"upward imports: {upward or 'none'}", f"circles of modules: {circles() or 'none'}"]
    return "\n".join(lines)


if __name__ == "__main__":
    print(graph())
