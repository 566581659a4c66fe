"""Do the tests notice a wrong line? Mutation testing of the numeric core.

    pip install mutmut==3.8.1
    python -m benchmarks.mutation stats losses [--sample 100] [--draw 1] [--survivors]

mutmut changes one place of a function at a time (`+` to `-`, 1 to 2, an argument to None) and runs
the tests that reach the function; a mutant that no test fails on is a gap in the tests, or
equivalent: it cannot give a result that is wrong. It works on a copy of the tree in
runs/mutation/GROUP, and continues there when it is called again. Printed are the survivors and a
Markdown table.

Each group of modules has the fast tests that concern it (`GROUPS`): the others might notice more,
but each survivor costs the time of all tests that reach it. Mutants judged equivalent are listed in
mutation_equivalent.toml with the changed line and a reason, and are not run. A timeout (15 times as
long as the tests take, and 15 seconds) counts as noticed.

Not mutated: texts of errors and findings (lines that match `TEXTS`), constants of modules, and,
since mutmut 3 leaves them out, functions with decorators, which are the properties. What a test
file makes on import is made before a mutant is chosen: it has to be made in a test to count.
Doctests are not run.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import random
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / "runs" / "mutation"
EQUIVALENT = Path(__file__).with_name("mutation_equivalent.toml")
# Lines without mutants: raised errors, and lines that have a string of three words or more.
TEXTS = (r"\braise\b", r"""^(?:[^"']|"[^"]*"|'[^']*')*["'][^"']*\w \w[^"']* \w""")
SLOW = "not slow and not server and not browser and not cluster"
SEED = 0  # of the order in which samples are drawn
GENERATE = (  # mutmut's own command makes mutants only to run them at once
    "from mutmut import __main__ as m; m.makedirs('mutants', exist_ok=True);"
    "m.set_mutant_under_test('mutant_generation');"
    "m.copy_src_dir(); m.copy_also_copy_files(); m.create_mutants(1)"
)
# Exit codes of a mutant's tests. Not here: 33, no test reaches it.
TIMEOUTS = frozenset({-24, -9, 24, 36, 152, 255})


Change = tuple[str, str, str, str]  # module, function, lines before, lines after


@dataclass(frozen=True)
class Group:
    """Modules of src/potstill, as patterns of paths, and pytest's words for their tests."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


GROUPS: dict[str, Group] = {
    "stats": Group(
        ("stats/*.py",),
        (
            *("tests/test_stats.py", "tests/test_power.py"),
            *("-k", "not pilot and not sentences and not stated and not cover_the_truth"),
        ),
    ),
    "losses": Group(
        ("algorithms/losses/*.py",),
        (
            *("tests/test_losses.py", "tests/test_cross_losses.py"),
            *("-k", "not without_torch and not study"),
        ),
    ),
    "schedules": Group(("algorithms/schedules.py",), ("tests/test_schedule.py",)),
    "sampling": Group(("engines/torch/sampling.py",), ("tests/test_sampling.py",)),
    "objective": Group(("training/objective.py",), ("tests/test_objective.py",)),
    "rollout": Group(
        ("training/rollout.py",),
        ("tests/test_rollout.py", "tests/test_schedule.py", "-k", "not holds_over"),
    ),
    "grading": Group(
        ("tasks/grading.py",),
        ("tests/test_tasks.py", "-k", "grading or extractors or answer_in_the_format"),
    ),
    "alignment": Group(
        ("engines/cross_tokenizer/alignment.py",),
        (
            "tests/test_align.py",
            *("-k", "spans or special or cases or credit or cut_knows"),
        ),
    ),
    "metering": Group(
        ("training/metering.py", "training/spending.py"),
        (
            *("tests/test_metering.py", "tests/test_cost.py"),
            *("-k", "test_metering or dollars or adds_up or record or operations or limit"),
        ),
    ),
    "flops": Group(
        ("engines/flops.py",), ("tests/test_flops.py", "-k", "by_hand or slower or frozen_weights")
    ),
    "checkpoint": Group(
        ("training/checkpoint.py",),
        ("tests/test_checkpoint.py", "tests/test_methods.py", "-k", "checkpoint"),
    ),
    "diagnosis": Group(
        ("diagnostics/symptoms.py", "diagnostics/diagnosis.py", "diagnostics/notes.py"),
        (
            *("tests/test_findings.py", "tests/test_symptoms.py"),
            *("tests/test_mode_collapse.py", "tests/test_notes.py"),
            *("-k", "not drive and not a_model and not at_a_high_rate_have and not at_step_0"),
        ),
    ),
    "monitor": Group(
        ("diagnostics/probe.py", "diagnostics/monitor.py"),
        ("tests/test_monitor.py",),
    ),
    "loss_terms": Group(("engines/torch/loss_terms.py",), ("tests/test_loss_terms.py",)),
}


@dataclass(frozen=True)
class Mutant:
    """One change of one function; `code` is the exit code of its tests, None before they ran."""

    name: str
    module: str  # path below src/potstill
    function: str  # with its class
    was: str
    now: str
    code: int | None

    @property
    def change(self) -> Change:
        """What an entry of the equivalents' list names."""
        return self.module, self.function, self.was, self.now

    @property
    def status(self) -> str:
        """One of: noticed, timeout, survived, not run."""
        if self.code is None:
            return "not run"
        if self.code in TIMEOUTS:
            return "timeout"
        return "survived" if self.code in (0, 33) else "noticed"


def main() -> None:
    """Run the mutants of some groups and print how many the tests notice."""
    parser = argparse.ArgumentParser(
        description="Mutation testing of the numeric core. Install: pip install mutmut==3.8.1"
    )
    names = ", ".join(GROUPS)
    parser.add_argument("groups", nargs="+", choices=[*GROUPS], metavar="GROUP", help=names)
    parser.add_argument("--only", nargs="*", default=(), help="modules, such as stats/power.py")
    parser.add_argument("--sample", type=int, help="mutants of a module with 1.5 times as many")
    parser.add_argument("--draw", type=int, default=1, help="which sample; no two share a mutant")
    parser.add_argument("--survivors", action="store_true", help="run survivors again too")
    parser.add_argument("--print", action="store_true", dest="printed", help="run nothing")
    args = parser.parse_args()
    known, lines = equivalents(), [HEAD]
    for name in args.groups:
        folder = WORK / name
        if not args.printed:
            prepare(folder, GROUPS[name])
        for module, every in by_module(mutants(folder)).items():
            if args.only and module not in args.only:
                continue
            chosen = drawn(every, args.sample, args.draw)
            if not args.printed:
                chosen = run(folder, chosen, known, args.survivors)
            for mutant in chosen:
                if mutant.status == "survived" and mutant.change not in known:
                    print(f"{mutant.name}\n  - {mutant.was}\n  + {mutant.now}")
            lines.append(row(module, len(every), chosen, known))
    print(*lines, sep="\n")


def run(
    folder: Path, chosen: Sequence[Mutant], known: Mapping[Change, str], again: bool
) -> list[Mutant]:
    """Run the tests on mutants that have no result yet, and return them with their results.

    Args:
        folder: the work folder of the group.
        chosen: mutants of one module.
        known: equivalents, which are left out.
        again: survivors are run too.
    """
    names = {m.name for m in chosen}
    mutmut = str(Path(sys.executable).with_name("mutmut"))
    states = {"not run", "survived"} if again else {"not run"}
    while todo := [m.name for m in chosen if m.status in states and m.change not in known]:
        words = [mutmut, "run", "--max-children", "1", *todo]
        if subprocess.run(words, cwd=folder, check=False).returncode:
            raise SystemExit("error: mutmut did not finish. hint: its last lines have the reason")
        chosen = [m for m in mutants(folder) if m.name in names]
        states = {"not run"}  # other tests than last time: mutmut has forgotten all results
    return list(chosen)


def prepare(folder: Path, group: Group) -> None:
    """Bring the tree into the work folder, with mutmut's configuration, and make the mutants."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    known = {name for name in listed if (ROOT / name).is_file()}
    for name in known:
        text = (ROOT / name).read_bytes()
        if name == "pyproject.toml":
            text += configuration(group).encode()
        target = folder / name
        # An unchanged file keeps its time, by which mutmut knows what to mutate again.
        if not target.exists() or target.read_bytes() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text)
    for top in ("src", "tests"):
        for path in (folder / top).rglob("*.py"):
            name = path.relative_to(folder).as_posix()
            if name not in known:
                path.unlink()
                (folder / "mutants" / name).unlink(missing_ok=True)
    subprocess.run(
        [sys.executable, "-c", GENERATE], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )


def configuration(group: Group) -> str:
    """mutmut's table of pyproject.toml."""
    copied = sorted({p.name for p in ROOT.iterdir()} - {"src", "tests", "runs", "site", "mutants"})
    table = {
        "source_paths": ["src"],
        "only_mutate": [f"src/potstill/{pattern}" for pattern in group.modules],
        "do_not_mutate_patterns": list(TEXTS),
        "also_copy": [name for name in copied if not name.startswith(".")],
        "pytest_add_cli_args": ["-m", SLOW, "-p", "no:cacheprovider", "-p", "no:xdist"],
        "pytest_add_cli_args_test_selection": list(group.tests),
        "on_dependency_change": "ignore",
        "use_git_change_detection": False,
    }
    # A list or a string of JSON is one of TOML.
    return "\n[tool.mutmut]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items())


def mutants(folder: Path) -> list[Mutant]:
    """Every mutant that mutmut has made in a work folder."""
    source = folder / "mutants" / "src" / "potstill"
    return [
        mutant
        for meta in sorted(source.rglob("*.meta"))
        for mutant in read(
            meta.with_suffix("").relative_to(source).as_posix(),
            meta.with_suffix("").read_text(),
            json.loads(meta.read_text())["exit_code_by_key"],
        )
    ]


def read(module: str, text: str, codes: Mapping[str, int | None]) -> Iterator[Mutant]:
    """The mutants of one module.

    Args:
        module: its path below src/potstill.
        text: of mutmut's file, where the copies of function f are x_f__mutmut_orig, x_f__mutmut_1.
        codes: exit codes by name, which ends in the name of the copy.
    """
    lines = text.splitlines()
    copies = {
        node.name: lines[node.lineno - 1 : node.end_lineno]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "__mutmut_" in node.name
    }
    for name, code in codes.items():
        copy = name.rpartition(".")[2]
        function = copy.rpartition("__mutmut_")[0]
        was, now = changed(copies[f"{function}__mutmut_orig"], copies[copy])
        yield Mutant(name, module, readable(function), was, now, code)


def readable(function: str) -> str:
    """The name that the source has.

    >>> readable("x_holm"), readable("x__unit"), readable("xǁPowerǁ_plan")
    ('holm', '_unit', 'Power._plan')
    """
    if "ǁ" in function:
        return function.removeprefix("xǁ").replace("ǁ", ".")
    return function.removeprefix("x_")


def changed(was: Sequence[str], now: Sequence[str]) -> tuple[str, str]:
    """The lines that differ, of either side, after the head with the function's name."""
    out: list[str] = []
    rest = [[re.sub(r"__mutmut_\w+\(", "(", line) for line in side] for side in (was, now)]
    matcher = difflib.SequenceMatcher(None, rest[0], rest[1], autojunk=False)
    spans = [op for op in matcher.get_opcodes() if op[0] != "equal"]
    if not spans:
        return "", ""
    first, last = spans[0], spans[-1]
    for side, start, end in ((rest[0], first[1], last[2]), (rest[1], first[3], last[4])):
        out.append(" ".join(line.strip() for line in side[start:end]))
    return out[0], out[1]


def equivalents(path: Path = EQUIVALENT) -> dict[Change, str]:
    """Reasons by change, of mutants judged equivalent."""
    return {
        (module, function, one["was"], now): one["why"]
        for module, functions in tomllib.loads(path.read_text()).items()
        for function, ones in functions.items()
        for one in ones
        for now in one["now"]
    }


def by_module(every: Sequence[Mutant]) -> dict[str, list[Mutant]]:
    """Mutants by module, without modules that have none."""
    found: dict[str, list[Mutant]] = {}
    for mutant in every:
        found.setdefault(mutant.module, []).append(mutant)
    return found


def drawn(every: Sequence[Mutant], size: int | None, draw: int) -> list[Mutant]:
    """All mutants of a module, or of more than 1.5 * `size` a random sample.

    Args:
        every: mutants of one module.
        size: of a sample; None: all.
        draw: 1 for the first; samples of different draws have no mutant in common.
    """
    if size is None or len(every) <= 1.5 * size:
        return list(every)
    order = sorted(every, key=lambda m: m.name)
    random.Random(SEED).shuffle(order)
    return order[(draw - 1) * size : draw * size]


HEAD = """\
| module | mutants | run | noticed | equivalent | survived | timeouts | noticed or equivalent, % |
|---|--:|--:|--:|--:|--:|--:|--:|"""


def row(module: str, total: int, chosen: Sequence[Mutant], known: Mapping[Change, str]) -> str:
    """One line of the table; an equivalent counts as such whether its tests were run or not."""
    counts = dict.fromkeys(("noticed", "equivalent", "survived", "timeout"), 0)
    for mutant in chosen:
        if mutant.change in known and mutant.status in ("survived", "not run"):
            counts["equivalent"] += 1
        elif mutant.status != "not run":
            counts[mutant.status] += 1
    ran = sum(counts.values())
    size = f"{ran} (sample)" if ran < total else str(ran)
    share = f"{100 * (1 - counts['survived'] / ran):.1f}" if ran else ""
    return f"| `{module}` | {total} | {size} | {' | '.join(map(str, counts.values()))} | {share} |"


if __name__ == "__main__":
    main()
