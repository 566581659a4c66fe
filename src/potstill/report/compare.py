"""Several studies compared with the first one.

For every pair and method that the first shares with another one: both results, and their
difference with its interval. It is paired by problem where both evaluated the same problems, and
never by seed; the report states which. It does not attribute a difference to a
setting: the settings that differ are listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.report.data import StudyData, load
from potstill.report.formatting import settings
from potstill.report.results import Row
from potstill.report.tables.methods import row_record
from potstill.stats.comparisons import Difference, corrected, difference
from potstill.stats.metric import Metric
from potstill.study.storage import REFERENCES, RunId

LETTERS = "ABCDEFGH"


@dataclass(frozen=True, eq=False)
class Side:
    """One of the studies."""

    letter: str
    label: str  # its folder's name, longer where two are equal
    data: StudyData


@dataclass(frozen=True)
class Compared:
    """One method on one pair, in every study."""

    pair: str
    method: str
    rows: tuple[Row | None, ...]
    differences: tuple[Difference | None, ...]  # to the first study, whose own is None


@dataclass(frozen=True)
class Comparison:
    """A comparison of studies."""

    sides: tuple[Side, ...]
    entries: tuple[Compared, ...]
    pairing: Mapping[str, tuple[str, ...]]  # by pair: how each other study is compared
    settings: tuple[tuple[str, ...], ...]  # a key and its value in each study, where they differ
    left: tuple[str, ...]  # what only one study has, in words

    @property
    def metric(self) -> Metric:
        """The number that is compared."""
        return self.sides[0].data.metric

    @property
    def pairs(self) -> list[str]:
        """Pairs that are compared."""
        return list(dict.fromkeys(entry.pair for entry in self.entries))

    def to_json(self) -> dict[str, Any]:
        """The comparison for programs; shares in [0, 1]."""
        studies = []
        for side in self.sides:
            study = {"study": side.data.study.name, "faults": list(side.data.study.faults)}
            studies.append({"letter": side.letter, "label": side.label, **study})
        return {
            "studies": studies,
            "metric": self.metric.name,
            "entries": [self._entry(entry) for entry in self.entries],
            "pairing": {pair: list(words) for pair, words in self.pairing.items()},
            "settings": [list(row) for row in self.settings],
            "left": list(self.left),
        }

    def _entry(self, entry: Compared) -> dict[str, Any]:
        sides = zip(self.sides, entry.rows, strict=True)
        rows = [row and row_record(row, side.data.metrics) for side, row in sides]
        return asdict(entry) | {"rows": rows}


def compare(paths: Sequence[Path]) -> Comparison:
    """Read the studies and compare the others with the first.

    Raises:
        PotstillError: fewer than two folders or too many, one twice, one that holds no study, or
            nothing that the first shares with another.
    """
    sides = _sides(paths)
    _check_metrics(sides)
    first, *others = sides
    shared = [
        (pair, method)
        for pair in first.data.study.models
        for method in [*REFERENCES, *first.data.recipes]
        if any(_has(side.data, pair, method) for side in others)
    ]
    if all(method in REFERENCES for _, method in shared):
        contents = "; ".join(f"{side.label}: {_contents(side.data)}" for side in sides)
        hint = "give studies that ran the same method on a pair of the same name"
        raise PotstillError(f"the studies share no method on a pair: {contents}", hint)
    pairs = list(dict.fromkeys(pair for pair, _ in shared))
    same = {(p, s.letter): same_problems(first.data, s.data, p) for p in pairs for s in others}
    entries = [entry for pair in pairs for entry in _entries(pair, shared, sides, same)]
    return Comparison(
        sides=tuple(sides),
        entries=tuple(entries),
        pairing={p: tuple(_words(first, s, p, same[p, s.letter]) for s in others) for p in pairs},
        settings=tuple(differing([side.data for side in sides])),
        left=tuple(_left(sides, {*shared})),
    )


def _check_metrics(sides: Sequence[Side]) -> None:
    """Raise `PotstillError` for studies that are measured by different numbers."""
    done = [side for side in sides if side.data.counts["done"]]
    names = {side.data.metric.name for side in done}
    if len(names) > 1:
        known = "; ".join(f"{side.label}: {side.data.metric.label}" for side in done)
        raise PotstillError(
            f"the studies are measured by different numbers: {known}",
            "compare studies that both have a grader, or both have none",
        )


def _sides(paths: Sequence[Path]) -> list[Side]:
    if not 2 <= len(paths) <= len(LETTERS):
        hint = "for example: potstill compare runs/before runs/after"
        raise PotstillError(f"compare takes 2 to {len(LETTERS)} studies, got {len(paths)}", hint)
    whole = [Path(path).resolve() for path in paths]
    twice = [str(path) for path, real in zip(paths, whole, strict=True) if whole.count(real) > 1]
    if twice:
        raise PotstillError(f'"{twice[0]}" is given twice', "give each study once")
    names = [path.name for path in whole]
    sides = []
    for letter, name, real, path in zip(LETTERS, names, whole, paths, strict=False):
        label = name if names.count(name) == 1 else "/".join(real.parts[-2:])
        sides.append(Side(letter, label, load(Path(path))))
    return sides


def _has(data: StudyData, pair: str, method: str) -> bool:
    if pair not in data.study.models:
        return False
    return method in data.recipes or method in data.references(pair)


def _contents(data: StudyData) -> str:
    return ", ".join(f"{pair} with {', '.join(data.recipes)}" for pair in data.study.models)


def _entries(
    pair: str,
    shared: Sequence[tuple[str, str]],
    sides: Sequence[Side],
    same: Mapping[tuple[str, str], str],
) -> list[Compared]:
    """The methods of a pair; p-values are corrected over them, study by study."""
    methods = [method for name, method in shared if name == pair]
    columns: list[list[Difference | None]] = [[None] * len(methods)]
    for side in sides[1:]:
        problems = bool(same[pair, side.letter])
        deltas = [_difference(side.data, sides[0].data, pair, m, problems) for m in methods]
        n = sum(method in REFERENCES for method in methods)  # untrained and teacher come first
        columns.append([*deltas[:n], *corrected(deltas[n:])])
    rows = [{r.method: r for r in s.data.rows if r.pair == pair} for s in sides]
    return [
        Compared(pair, method, tuple(r.get(method) for r in rows), tuple(c[i] for c in columns))
        for i, method in enumerate(methods)
    ]


def _difference(
    data: StudyData, first: StudyData, pair: str, method: str, problems: bool
) -> Difference | None:
    """The result in one study minus that in the first."""
    a, b = data.family(pair), first.family(pair)
    if method not in a.samples or method not in b.samples:
        return None
    one, other = a.samples[method], b.samples[method]
    paired = problems and len(one.columns) == len(other.columns)
    return difference(one, a.variances[method], other, b.variances[method], paired=paired)


def same_problems(a: StudyData, b: StudyData, pair: str) -> str:
    """The evidence that both evaluated the same problems; empty where they did not."""
    one, other = _evaluated(a, pair), _evaluated(b, pair)
    if one and other:
        return "completions" if one == other else ""
    same = a.study.task == b.study.task and a.study.eval.problems == b.study.eval.problems
    return "settings" if same else ""


def _evaluated(data: StudyData, pair: str) -> list[tuple[str, str, str]]:
    """Id, question and answer of each problem, as recorded for the untrained student or teacher."""
    for role in REFERENCES:
        cell = RunId(pair, role)
        run = data.runs.get(cell)
        kept = data.folder.cell(cell).texts if run and run.status == "done" else []
        n = int(run.record.get("problems") or 0) if run else 0
        if n and len(kept) >= n:
            return [(str(r["problem"]), str(r["question"]), str(r["answer"])) for r in kept[:n]]
    return []


def _words(first: Side, side: Side, pair: str, evidence: str) -> str:
    """The pairing of a study with the first one, on one pair of models."""
    name = f"{side.letter} − {first.letter}"
    if pair not in side.data.study.models:
        return f"{name}: {side.letter} does not have this pair."
    if not evidence:
        sizes = [s.data.problems for s in (first, side)]
        return (
            f"{name}: not paired, the problems differ ({sizes[0]} and {sizes[1]} of them); "
            "seeds and problems of each study are independent."
        )
    known = "" if evidence == "completions" else " (by the settings: no completions are recorded)"
    return f"{name}: paired by problem{known}; the seeds of each study are independent."


def differing(studies: Sequence[StudyData]) -> list[tuple[str, ...]]:
    """Settings and provenance that are not the same in all: key, then a value for each."""
    whole = [{**data.study.to_toml(), "provenance": dict(data.provenance)} for data in studies]
    tables = [dict(settings(table)) for table in whole]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = [(key, *(table.get(key, "") for table in tables)) for key in keys if key != "name"]
    return [row for row in rows if len(set(row[1:])) > 1]


def _left(sides: Sequence[Side], shared: set[tuple[str, str]]) -> list[str]:
    """Methods without a counterpart, a line a study."""
    lines = []
    for side in sides:
        grid = [(p, m) for p in side.data.study.models for m in side.data.recipes]
        alone = [f"{pair} {method}" for pair, method in grid if (pair, method) not in shared]
        lines += [f"{side.letter} alone has {', '.join(alone)}."] * bool(alone)
    return lines


def readings(comparison: Comparison, entries: Sequence[Compared]) -> list[str]:
    """The significant differences, in words."""
    lines = []
    for i, side in enumerate(comparison.sides[1:], 1):
        name = f"{side.letter} against {comparison.sides[0].letter}"
        trained = [entry for entry in entries if entry.method not in REFERENCES]
        metric = comparison.metric
        known = {e.method: metric.judged(e.differences[i]) for e in trained if e.differences[i]}
        better, worse = ([m for m in known if known[m] == sign] for sign in (1, -1))
        words = ("higher", "lower") if metric.higher_is_better else ("better", "worse")
        parts = [f"significantly {words[0]}: {', '.join(better)}"] * bool(better)
        parts += [f"significantly {words[1]}: {', '.join(worse)}"] * bool(worse)
        rest = len(known) - len(better) - len(worse)
        text = f"{'; '.join(parts)}; {rest} without a significant difference"
        if not parts:
            text = f"no significant difference in any of {rest} methods"
        lines.append(f"{name}: {text if known else 'no method has a result in both'}.")
    return lines
