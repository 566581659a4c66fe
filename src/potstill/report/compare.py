"""Several studies beside each other: the first is what the others are held against.

For every pair and method that the first shares with another one: both accuracies, and their
difference with its interval. It is paired by problem where both graded the same problems, by seed
too where both ran the same seeds; which of these holds is said with it. It draws no conclusion
about which setting makes the difference: those that differ are listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.errors import PotstillError
from potstill.report import stats
from potstill.report.data import StudyData, load
from potstill.report.numbers import settings
from potstill.report.stats import Difference, Row, outcome_matrix
from potstill.study.storage import REFERENCES, Cell

LETTERS = "ABCDEFGH"


@dataclass(frozen=True, eq=False)
class Side:
    """One of the studies."""

    letter: str
    label: str  # its folder's name, longer where two are alike
    data: StudyData


@dataclass(frozen=True)
class Entry:
    """One method on one pair, in every study."""

    pair: str
    method: str
    rows: tuple[Row | None, ...]
    differences: tuple[Difference | None, ...]  # to the first study, whose own is None


@dataclass(frozen=True)
class Comparison:
    """What a comparison shows."""

    sides: tuple[Side, ...]
    entries: tuple[Entry, ...]
    pairing: Mapping[str, tuple[str, ...]]  # by pair: how each other study is compared
    settings: tuple[tuple[str, ...], ...]  # a key and its value in each study, where they differ
    left: tuple[str, ...]  # what is in one study alone, in words

    @property
    def pairs(self) -> list[str]:
        """Pairs that are compared."""
        return list(dict.fromkeys(entry.pair for entry in self.entries))


def compare(paths: Sequence[Path]) -> Comparison:
    """Read the studies and hold the others against the first.

    Raises:
        PotstillError: fewer than two folders or too many, one twice, one that holds no study, or
            nothing that the first shares with another.
    """
    sides = _sides(paths)
    first, *others = sides
    shared = [
        (pair, method)
        for pair in first.data.study.models
        for method in [*REFERENCES, *first.data.recipes]
        if any(_has(side.data, pair, method) for side in others)
    ]
    if not any(method not in REFERENCES for _, method in shared):
        raise PotstillError(
            "the studies share no method on a pair: "
            + "; ".join(f"{s.label}: {', '.join(_contents(s.data))}" for s in sides),
            "give studies that ran the same method on a pair of the same name",
        )
    pairs = list(dict.fromkeys(pair for pair, _ in shared))
    alike = {(p, s.letter): same_problems(first.data, s.data, p) for p in pairs for s in others}
    entries = [entry for pair in pairs for entry in _entries(pair, shared, sides, alike)]
    return Comparison(
        sides=tuple(sides),
        entries=tuple(entries),
        pairing={p: tuple(_words(first, s, p, alike[p, s.letter]) for s in others) for p in pairs},
        settings=tuple(differing([side.data for side in sides])),
        left=tuple(_left(sides, {*shared})),
    )


def _sides(paths: Sequence[Path]) -> list[Side]:
    if not 2 <= len(paths) <= len(LETTERS):
        raise PotstillError(
            f"compare takes 2 to {len(LETTERS)} studies, got {len(paths)}",
            "for example: potstill compare runs/before runs/after",
        )
    whole = [Path(path).resolve() for path in paths]
    twice = [str(path) for path, real in zip(paths, whole, strict=True) if whole.count(real) > 1]
    if twice:
        raise PotstillError(f'"{twice[0]}" is given twice', "give each study once")
    names = [path.name for path in whole]
    labels = [
        name if names.count(name) == 1 else "/".join(path.parts[-2:])
        for name, path in zip(names, whole, strict=True)
    ]
    found = zip(LETTERS, labels, paths, strict=False)
    return [Side(letter, label, load(Path(path))) for letter, label, path in found]


def _has(data: StudyData, pair: str, method: str) -> bool:
    return pair in data.study.models and method in (*REFERENCES, *data.recipes)


def _contents(data: StudyData) -> list[str]:
    return [f"{pair} with {', '.join(data.recipes)}" for pair in data.study.models]


def _entries(
    pair: str,
    shared: Sequence[tuple[str, str]],
    sides: Sequence[Side],
    alike: Mapping[tuple[str, str], str],
) -> list[Entry]:
    """The methods of a pair; p-values are corrected over them, study by study."""
    methods = [method for where, method in shared if where == pair]
    columns: list[list[Difference | None]] = [[None] * len(methods)]
    for side in sides[1:]:
        problems = bool(alike[pair, side.letter])
        found = [_difference(side.data, sides[0].data, pair, m, problems) for m in methods]
        trained = stats.holm([d for d, m in zip(found, methods, strict=True) if _trained(m)])
        ends = [d for d, m in zip(found, methods, strict=True) if not _trained(m)]
        columns.append([*ends, *trained])
    rows = [{r.method: r for r in s.data.rows if r.pair == pair} for s in sides]
    return [
        Entry(pair, method, tuple(r.get(method) for r in rows), tuple(c[i] for c in columns))
        for i, method in enumerate(methods)
    ]


def _trained(method: str) -> bool:
    return method not in REFERENCES


def _difference(
    mine: StudyData, first: StudyData, pair: str, method: str, problems: bool
) -> Difference | None:
    """Accuracy in one study minus that in the first."""
    a, b = (
        {r.cell.seed: r.record for r in x.of(pair, method) if r.status == "done"}
        for x in (mine, first)
    )
    if not a or not b:
        return None
    one, other = outcome_matrix(a.values()), outcome_matrix(b.values())
    problems = problems and one.shape[1] == other.shape[1]
    if problems and a.keys() == b.keys():
        return stats.paired(a, b)
    return stats.unpaired(one, other, same_problems=problems)


def same_problems(a: StudyData, b: StudyData, pair: str) -> str:
    """How it is known that both graded the same problems; empty where they did not."""
    mine, its = _graded(a, pair), _graded(b, pair)
    if mine and its:
        return "texts" if mine == its else ""
    same = a.study.task == b.study.task and a.study.eval.problems == b.study.eval.problems
    return "settings" if same else ""


def _graded(data: StudyData, pair: str) -> list[tuple[str, str, str]]:
    """Id, question and answer of each graded problem, as a reference row recorded them."""
    for role in REFERENCES:
        cell = Cell(pair, role)
        run = data.runs.get(cell)
        texts = data.folder.cell(cell).texts if run and run.status == "done" else []
        n = int(run.record.get("problems") or 0) if run else 0
        if n and len(texts) >= n:
            return [(str(r["problem"]), str(r["question"]), str(r["answer"])) for r in texts[:n]]
    return []


def _words(first: Side, side: Side, pair: str, how: str) -> str:
    """How a study is compared with the first on a pair."""
    name = f"{side.letter} − {first.letter}"
    if pair not in side.data.study.models:
        return f"{name}: {side.letter} has no such pair."
    if not how:
        sizes = [s.data.study.eval.problems for s in (first, side)]
        return (
            f"{name}: not paired, the graded problems differ ({sizes[0]} and {sizes[1]} of them); "
            "intervals draw seeds and problems of each by itself."
        )
    known = "" if how == "texts" else " (by the settings: their texts are not recorded)"
    if set(first.data.study.seeds) == set(side.data.study.seeds):
        return f"{name}: paired by problem and by seed{known}; by problem alone where a seed lacks."
    return f"{name}: paired by problem{known}; the seeds differ and are drawn for each by itself."


def differing(studies: Sequence[StudyData]) -> list[tuple[str, ...]]:
    """Settings and provenance that are not the same in all: key, then a value for each."""
    tables = [
        dict(settings({**data.study.to_toml(), "provenance": dict(data.provenance)}))
        for data in studies
    ]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = [(key, *(table.get(key, "") for table in tables)) for key in keys if key != "name"]
    return [row for row in rows if len(set(row[1:])) > 1]


def _left(sides: Sequence[Side], shared: set[tuple[str, str]]) -> list[str]:
    """What is compared with nothing, a line a study."""
    found = []
    for side in sides:
        mine = [(p, m) for p in side.data.study.models for m in side.data.recipes]
        alone = [f"{pair} {method}" for pair, method in mine if (pair, method) not in shared]
        found += [f"{side.letter} alone has {', '.join(alone)}."] * bool(alone)
    return found
