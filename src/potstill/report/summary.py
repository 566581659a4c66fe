"""The four questions at the top of a report, answered from its numbers: which method, can I trust
that, what did it cost, did anything break. And what was not tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from potstill.algorithms.methods import METHODS
from potstill.report import stats
from potstill.report.costs import costs
from potstill.report.data import Run, StudyData
from potstill.report.findings import Grouped, watched
from potstill.report.numbers import count, dollars, duration
from potstill.report.reading import FEW_PROBLEMS, FEW_SEEDS, caveats
from potstill.report.stats import Difference, Row
from potstill.report.verdict import Choice, Evidence, best, choose
from potstill.settings import Price
from potstill.study.storage import REFERENCES
from potstill.training.spending import Spent, total

Tone = Literal["good", "warn", "bad", "plain"]


@dataclass(frozen=True)
class Answer:
    """One question with its answer in a few words and what lies behind it."""

    question: str
    tone: Tone
    head: str
    lines: tuple[str, ...] = ()


def choices(data: StudyData, groups: Sequence[Grouped]) -> dict[str, Choice]:
    """Which method, by pair."""
    return {pair: choose(evidence(data, pair, groups)) for pair in data.study.models}


def evidence(data: StudyData, pair: str, groups: Sequence[Grouped]) -> Evidence:
    """What a choice on this pair rests on; the differences to the best are worked out here."""
    rows = [r for r in data.rows if r.pair == pair and r.method not in REFERENCES]
    collapsed = {
        group.method: f"{len(group.runs)} of {group.of} runs, from step {group.onset} on: "
        f"{group.first.cause} ({group.meaning})"
        for group in groups
        if group.pair == pair and group.first.kind == "collapse"
    }
    top = best(rows, collapsed)
    done = {
        row.method: {r.cell.seed: r.record for r in data.of(pair, row.method) if r.status == "done"}
        for row in rows
    }
    others = [r.method for r in rows if top and r.accuracy and r.method != top.method]
    apart = [stats.paired(done[top.method], done[m]) if top else None for m in others]
    price = {row.method: row.usd for row in costs(data, pair) if row.usd is not None}
    missing = sum(r.status == "missing" for c, r in data.runs.items() if c.pair == pair)
    named = dict(zip(others, stats.holm(apart), strict=True))
    if top:
        _agree(named, {row.method: row for row in rows}, top.method)
    return Evidence(rows, named, collapsed, data.study.faults, price, missing)


def _agree(apart: dict[str, Difference | None], rows: Mapping[str, Row], top: str) -> None:
    """A difference that the table has too, in another family of comparisons, keeps the larger p:
    the page must not call one difference clear in one place and not in another."""
    table = {stats.BASELINE: rows[top].against_baseline}
    if top == stats.BASELINE:
        table = {method: row.against_baseline for method, row in rows.items()}
    for method, found in table.items():
        mine = apart.get(method)
        if found and mine:
            apart[method] = replace(mine, p=max(mine.p, found.p))


def answers(data: StudyData, groups: Sequence[Grouped], chosen: dict[str, Choice]) -> list[Answer]:
    """The four, in the order in which they are asked."""
    sure = all(choice.kind in ("clear", "gain", "tie", "single") for choice in chosen.values())
    heads = [f"{pair}: {choice.head}" for pair, choice in chosen.items()]
    which = Answer("Which method?", "plain" if sure else "warn", "\n".join(heads))
    return [which, _trust(data, groups), _cost(data), _broke(data, groups)]


def _trust(data: StudyData, groups: Sequence[Grouped]) -> Answer:
    study, seen = data.study, watched(data.runs)
    told = caveats(data)
    seeds, problems = len(study.seeds), study.eval.problems
    weak = seeds < FEW_SEEDS or problems < FEW_PROBLEMS or data.counts["missing"] > 0
    deviates = sorted({f"{g.pair} {g.method}" for g in groups if g.first.kind == "deviation"})
    if deviates:
        told.insert(0, f"Trains something else than its recipe says: {', '.join(deviates)}.")
    elif seen:
        told.append(f"{seen} runs checked their own loss while they trained: none deviates.")
    told.append("The best is picked after looking, which flatters it a little.")
    tone: Tone = "bad" if study.faults or deviates else "warn" if weak else "good"
    size = f"{_plural(seeds, 'seed')}, {problems} held-out problems"
    head = {"warn": f"With care: {size}", "good": f"Yes, for these models: {size}"}.get(tone, "")
    why = "faults are switched on" if study.faults else "runs deviate from their recipe"
    return Answer("Can I trust that?", tone, head or f"No: {why}", tuple(told))


def _cost(data: StudyData) -> Answer:
    runs = [run for run in data.runs.values() if run.record]
    spent, price = total(Spent.read(run.record) for run in runs), data.study.price
    priced = price != Price()
    head = f"{duration(spent.seconds)} of computing"
    head += f", {dollars(spent.usd(price))} USD" if priced else ""
    lines = [f"{count(spent.count())} completion tokens in {_plural(len(runs), 'cell')}."]
    rows = [row for pair in data.study.models for row in costs(data, pair)]
    if rows:
        low, high = (f(row.spent.seconds for row in rows) for f in (min, max))
        lines.append(f"A run takes {duration(low)} to {duration(high)}.")
    told = [(row.predicted.seconds, row.spent.seconds) for row in rows if row.predicted]
    if told and (was := sum(b for _, b in told)):
        share = 100 * sum(a for a, _ in told) / was
        lines.append(f"Pre-flight had predicted {share:.0f} % of the time that it took.")
    lines += ["No price is set ([price] in the study file): no dollars."] * (not priced)
    return Answer("What did it cost?", "plain", head, tuple(lines))


def _broke(data: StudyData, groups: Sequence[Grouped]) -> Answer:
    bad = [group for group in groups if group.first.kind == "collapse"]
    odd = [group for group in groups if group.first.kind == "deviation"]
    sick, off = (len({str(r.cell) for g in some for r in g.runs}) for some in (bad, odd))
    counts = data.counts
    parts = [f"{sick} collapsed"] * bool(sick) + [f"{off} deviate from their recipe"] * bool(off)
    parts += [f"{counts['failed']} failed"] * bool(counts["failed"])
    parts += [f"{counts['missing']} missing"] * bool(counts["missing"])
    lines = [group.sentence for group in [*bad, *odd]]
    failed = [run for run in data.runs.values() if run.status == "failed"]
    lines += [f"{run.cell} failed: {_cut(run.cause)}" for run in failed[:3]]
    lines += [f"and {len(failed) - 3} more below"] * (len(failed) > 3)
    if lost := _not_numbers(data):
        lines.append(f"Losses that are no numbers: {', '.join(lost)}.")
    if parts:
        worst: Tone = "bad" if sick or off or counts["failed"] else "warn"
        return Answer("Did anything break?", worst, ", ".join(parts), tuple(lines))
    seen = watched(data.runs)
    words = f"All {len(data.runs)} cells ended; {seen} runs were watched, none collapsed."
    if not seen:
        words = f"All {len(data.runs)} cells ended; no run recorded signals to judge it by."
    return Answer("Did anything break?", "good", "Nothing", (*lines, words))


def _not_numbers(data: StudyData) -> list[str]:
    """Runs whose recorded loss is null at some step: it was no number."""

    def lost(run: Run) -> bool:
        return any(row["step"] and row.get("train/loss") is None for row in run.metrics)

    named = [str(run.cell) for run in data.runs.values() if lost(run)]
    return named if len(named) < 4 else [*named[:3], f"and {len(named) - 3} more"]


def untested(data: StudyData) -> list[str]:
    """What this study says nothing about."""
    study = data.study
    left = [name for name in METHODS if name not in data.recipes]
    absent = [
        f"{pair} {role}"
        for pair in study.models
        for role in REFERENCES
        if data.accuracy(pair, role) is None
    ]
    task = study.task.get("name", "unknown")
    found = [f"methods that potstill has and this study has not: {', '.join(left)}"] * bool(left)
    found += [f"reference rows without a result: {', '.join(absent)}"] * bool(absent)
    found.append(f"any task but {task}, any pair but {', '.join(study.models)}")
    found.append("other learning rates, batch sizes and lengths than those under Settings")
    return found


def as_lines(chosen: dict[str, Choice]) -> list[str]:
    """The verdict for a terminal."""
    return [f"{pair}: {choice.head}" for pair, choice in chosen.items()]


def as_record(chosen: dict[str, Choice]) -> dict[str, Any]:
    """The verdict for a program."""
    return {
        pair: {
            "kind": choice.kind,
            "methods": list(choice.methods),
            "head": choice.head,
            "lines": list(choice.lines),
        }
        for pair, choice in chosen.items()
    }


def _cut(text: str) -> str:
    from potstill.report.texts import visible

    return visible(text, 160)


def _plural(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"
