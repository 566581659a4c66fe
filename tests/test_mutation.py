"""Mutation testing: what is read from mutmut's files, counted and sampled."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from benchmarks.mutation import (
    EQUIVALENT,
    GROUPS,
    ROOT,
    TEXTS,
    Mutant,
    configuration,
    drawn,
    equivalents,
    mutants,
    row,
)

SOURCE = ROOT / "src" / "potstill"
GENERATED = """\
class Power:
    def xǁPowerǁplan__mutmut_orig(self, n):
        return n + 1

    def xǁPowerǁplan__mutmut_1(self, n):
        return n - 1


def x__half__mutmut_orig(
    n,
):
    m = n
    return [
        m / 2,
        0,
    ]

def x__half__mutmut_1(
    n,
):
    m = None
    return [
        m / 2,
        0,
    ]

def x__half__mutmut_2(
    n,
):
    m = n
    return [
        m * 2,
        1,
    ]
"""
CODES = {"a.xǁPowerǁplan__mutmut_1": 1, "a.x__half__mutmut_1": 0, "a.x__half__mutmut_2": None}


def written(folder: Path) -> list[Mutant]:
    file = folder / "mutants" / "src" / "potstill" / "stats" / "a.py"
    file.parent.mkdir(parents=True)
    file.write_text(GENERATED)
    file.with_name("a.py.meta").write_text(json.dumps({"exit_code_by_key": CODES}))
    return mutants(folder)


def test_a_mutant_is_named_by_its_function_and_its_changed_lines(tmp_path: Path) -> None:
    plan, first, second = written(tmp_path)
    assert plan.change == ("stats/a.py", "Power.plan", "return n + 1", "return n - 1")
    assert first.change == ("stats/a.py", "_half", "m = n", "m = None")
    assert second.change == ("stats/a.py", "_half", "m / 2, 0,", "m * 2, 1,")
    assert [m.status for m in (plan, first, second)] == ["noticed", "survived", "not run"]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *((0, "survived"), (33, "survived"), (1, "noticed"), (2, "noticed"), (-11, "noticed")),
        *((-24, "timeout"), (36, "timeout"), (-9, "timeout"), (None, "not run")),
    ],
)
def test_exit_codes(code: int | None, status: str) -> None:
    assert Mutant("x", "a.py", "f", "", "", code).status == status


def test_the_table_counts_equivalents_once_and_leaves_out_what_was_not_run(tmp_path: Path) -> None:
    plan, first, second = written(tmp_path)
    timed = Mutant("x", "stats/a.py", "f", "a", "b", 36)
    known = {first.change: "", plan.change: ""}
    every = [plan, first, second, timed]
    assert row("stats/a.py", 4, every, known) == (
        "| `stats/a.py` | 4 | 3 (sample) | 1 | 1 | 0 | 1 | 100.0 |"
    )
    assert row("a.py", 2, every[:2], {}) == "| `a.py` | 2 | 2 | 1 | 0 | 1 | 0 | 50.0 |"


def test_samples_are_the_same_again_and_share_no_mutant() -> None:
    every = [Mutant(f"m{i}", "a.py", "f", "", str(i), None) for i in range(250)]
    draws = [drawn(every, 100, n) for n in (1, 2, 3)]
    assert [len(draw) for draw in draws] == [100, 100, 50]
    assert Counter(m.name for draw in draws for m in draw) == Counter(m.name for m in every)
    assert drawn(every[::-1], 100, 1) == draws[0] != every[:100]
    assert drawn(every[:150], 100, 1) == every[:150] and drawn(every, None, 2) == every


def test_every_group_has_modules_and_tests_that_are_there() -> None:
    for group in GROUPS.values():
        files = [path for pattern in group.modules for path in SOURCE.glob(pattern)]
        assert len(files) >= len(group.modules) > 0
        tests = [word for word in group.tests if word.startswith("tests/")]
        assert tests and all((ROOT / name).is_file() for name in tests)
        table = tomllib.loads(configuration(group))["tool"]["mutmut"]
        assert table["pytest_add_cli_args_test_selection"] == list(group.tests)
        assert table["do_not_mutate_patterns"] == list(TEXTS)
        assert {"docs", "benchmarks", "README.md"} <= set(table["also_copy"])
        assert not {"runs", "src"} & set(table["also_copy"])


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("raise ValueError(x + 1)", True),
        ('f"a schedule ends at {x}",', True),
        ("return {'a': 1}[x['a']] if y else z['b']", False),
        ('x["one"] + sum(s for s in y["two"])', False),
        ('low, high = f"{x:.3f} nats", "per token"', False),
        ("values = a * b  # a product of two", False),
    ],
)
def test_lines_with_texts_have_no_mutants(line: str, text: bool) -> None:
    assert any(re.search(pattern, line) for pattern in TEXTS) == text


def test_equivalents_are_lines_of_the_source_with_a_reason() -> None:
    known = equivalents(EQUIVALENT)
    assert known and all(len(why) > 5 for why in known.values())
    for module, function, was, now in known:
        text = " ".join(line.strip() for line in (SOURCE / module).read_text().splitlines())
        assert was in text and f"def {function.rpartition('.')[2]}(" in text, (function, was)
        assert now not in (was, "")
