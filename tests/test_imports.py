"""Who may import whom, read from the source: the arrows of the design point down only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "potstill"
HEAVY = {
    "torch",
    "transformers",
    "tinker",
    "ray",
    "scipy",
    "matplotlib",
    "plotly",
    "datasets",
    "peft",
    "wandb",
    "tensorboard",
    "trackio",
    "mlflow",
}

# Lowest first: a module imports only from layers below its own.
LAYERS = [
    {"errors", "types", "provenance"},
    {"schedule", "losses", "prompts", "zoo", "flops", "align"},
    {"recipe", "engines", "tasks", "settings", "trackers", "spelling"},
    {"methods", "faults", "cost", "context", "interleave", "refusals"},
    {"config", "rollout", "objective", "meter", "cache", "diagnose"},
    {"checkpoint", "evaluate", "store", "sources"},
    {"signals", "remote", "track"},
    {"loop", "stats", "preflight"},
    {"audit", "snapshot"},
    {"study", "view", "report"},
    {"where"},
    {"listing", "pool", "bench"},
    {"cluster"},
    {"launch"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Modules that run on tensors, or that a command imports only when it runs.
TENSORS = {
    "engines.torch",
    "engines.models",
    "engines.processes",
    "engines.sharding",
    "engines.cross",
    "engines.sampling",
    "engines.decoding",
    "engines.heads",
    "engines.terms",
    "engines.limits",
    "engines.tinker",
    "engines.service",
    "engines.connection",
    "engines.conformance",
    "engines.loading",
    "track.wandb",
    "track.tensorboard",
    "track.mlflow",
    "zoo.build",
    "zoo.save",
}


def modules() -> dict[str, Path]:
    found = {}
    for path in SRC.rglob("*.py"):
        parts = path.relative_to(SRC).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name or "__init__"] = path
    return found


def imports(path: Path, *, top: bool) -> set[str]:
    """Dotted names that a module imports; `top` leaves out those inside functions."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
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


ALL = modules()


def test_every_module_has_a_place() -> None:
    assert {name.split(".")[0] for name in ALL} - {"__init__"} == set(LEVEL)
    assert not {"utils", "common", "base", "manager", "helpers"} & {n.split(".")[-1] for n in ALL}


@pytest.mark.parametrize("name", sorted(set(ALL) - {"__init__"}))
def test_arrows_point_down(name: str) -> None:
    mine = name.split(".")[0]
    for target in imports(ALL[name], top=True):
        if not target.startswith("potstill."):
            continue
        its = target.split(".")[1]
        if its == mine or name in TENSORS:
            continue
        if its in LEVEL:
            assert LEVEL[its] < LEVEL[mine], f"{name} imports {target}"


@pytest.mark.parametrize("name", sorted(set(ALL) - TENSORS))
def test_heavy_libraries_are_imported_only_where_tensors_live(name: str) -> None:
    heavy = {target.split(".")[0] for target in imports(ALL[name], top=True)} & HEAVY
    assert not heavy, f"{name} imports {heavy} when it is loaded"


def test_reports_and_statistics_know_no_loop_and_no_engine() -> None:
    for name, path in ALL.items():
        if name.split(".")[0] in ("report", "stats"):
            reached = {
                t.split(".")[1] for t in imports(path, top=False) if t.startswith("potstill.")
            }
            assert not reached & {"loop", "engines", "study", "rollout"}, name


def test_engines_know_no_recipe_and_the_loop_no_method_and_no_engine() -> None:
    for name, path in ALL.items():
        reached = imports(path, top=False)
        if name.startswith("engines"):
            assert not any(
                t.startswith(("potstill.algorithms.recipe", "potstill.algorithms.methods"))
                for t in reached
            )
    text = (SRC / "loop.py").read_text()
    from potstill.algorithms.methods import METHODS
    from potstill.engines.registry import ENGINES

    assert not [name for name in METHODS if re.search(rf"\b{name}\b", text)]
    assert not [name for name in ENGINES if f'"{name}"' in text]
    (train,) = (n for n in ast.parse(text).body if getattr(n, "name", "") == "train")
    assert train.end_lineno - train.lineno + 1 <= 60


def test_functions_and_files_stay_small() -> None:
    for name, path in ALL.items():
        text = path.read_text()
        assert text.count("\n") <= 400, name
        assert ast.get_docstring(ast.parse(text)), f"{name} does not say what it is"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 80, f"{name}.{node.name}"


@pytest.mark.parametrize(
    "words", [["--help"], ["ls", "methods"], ["ls", "engines"], ["check"], ["report", "--help"]]
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

    for name in potstill.__all__:
        thing = getattr(potstill, name)
        assert not callable(thing) or thing.__doc__, name
    assert set(potstill.__all__) <= set(dir(potstill))
