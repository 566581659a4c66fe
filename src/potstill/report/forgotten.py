"""Skills lost in training: benchmarks of lm-eval, and the loss on a text file.

Both are measured on the untrained student and on each trained one, and are compared document by
document (piece by piece of the text). p-values are corrected over the methods of one benchmark. It
judges no cause, and a loss that is not significant may still be there: the interval has its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from potstill.report.data import StudyData
from potstill.report.formatting import detail, listed, plural, points
from potstill.report.results import Record, family
from potstill.stats.comparisons import VERDICT_SEEDS, Difference, Interval
from potstill.stats.metric import ACCURACY, KL, Metric

DRIFT = "drift"


@dataclass(frozen=True)
class Retention:
    """One benchmark on one pair."""

    metric: Metric
    measure: str  # lm-eval's name of the number
    documents: int  # pieces, of a text
    untrained: Interval
    levels: Mapping[str, Interval]  # by method
    changes: Mapping[str, Difference]  # by method: trained minus untrained
    cut: int  # prompts that lost tokens, as they are longer than the student's window

    def judged(self, sign: int) -> list[str]:
        """Methods that are significantly better (1) or worse (-1) than the untrained student."""
        return [m for m, change in self.changes.items() if self.metric.judged(change) == sign]


def retentions(data: StudyData, pair: str) -> list[Retention]:
    """Every benchmark that the untrained student and some method have, then the text file."""
    done = {m: data.done(pair, m) for m in ("untrained", *data.recipes)}
    records = [record for known in done.values() for record in known.values()]
    names = dict.fromkeys(name for r in records for name in r.get("benchmarks") or {})
    names |= {DRIFT: None} if any(r.get(DRIFT) for r in records) else {}
    return [one for name in names if (one := _retention(done, name))]


def _retention(done: Mapping[str, Mapping[int | None, Record]], name: str) -> Retention | None:
    entries = {
        method: {seed: known for seed, r in records.items() if (known := _entry(r, name))}
        for method, records in done.items()
    }
    every = [entry for records in entries.values() for entry in records.values()]
    kinds = {(e["metric"], e["higher_is_better"], tuple(e["documents"])) for e in every}
    if len(kinds) != 1 or not entries["untrained"]:
        return None
    metric = _metric(name, every)
    compared = family(
        {
            method: {seed: {"outcomes": {name: e["outcomes"]}} for seed, e in records.items()}
            for method, records in entries.items()
        },
        metric,
    )
    methods = [m for m in compared.samples if m != "untrained"]
    if "untrained" not in compared.samples or not methods:
        return None
    return Retention(
        metric,
        every[0]["metric"],
        len(compared.samples["untrained"].columns),
        compared.interval("untrained"),
        {m: compared.interval(m) for m in methods},
        {m: compared[m, "untrained"] for m in methods},
        max(entry.get("cut", 0) for entry in every),
    )


def _entry(record: Record, name: str) -> dict[str, Any] | None:
    """A record's outcomes by document; None where it has none."""
    known = record.get(DRIFT) if name == DRIFT else (record.get("benchmarks") or {}).get(name)
    plain = {"higher_is_better": True, "documents": ()}
    return plain | known if known and known["outcomes"] else None


def _metric(name: str, entries: Sequence[Mapping[str, Any]]) -> Metric:
    """The number as the rest of the report shows it: shares of documents in per cent."""
    measure, more = entries[0]["metric"], entries[0]["higher_is_better"]
    label = "loss on the text" if name == DRIFT else f"{name} ({measure})"
    share = name != DRIFT and all(0 <= float(x) <= 1 for e in entries for x in e["outcomes"])
    plain = replace(ACCURACY if share else KL, key=name, name=name, label=label, help="")
    unit = plain.unit if share else measure
    points = plain.points if share else measure
    return replace(plain, unit=unit, points=points, higher_is_better=more)


def sentences(data: StudyData, pair: str) -> list[str]:
    """The significant changes in words, a line for each benchmark."""
    lines, kept = [], []
    for one in retentions(data, pair):
        label, worse = one.metric.label, one.judged(-1)
        for word, methods in (("worse", worse), ("better", one.judged(1))):
            if methods:
                changes = "; ".join(_change(one, method) for method in methods)
                lines.append(
                    f"{label}, significantly {word} than the untrained student: {changes}."
                )
        if all(change.seeds < VERDICT_SEEDS for change in one.changes.values()):
            changes = "; ".join(_change(one, method) for method in one.changes)
            lines.append(
                f"{label}, to the untrained student: {changes}. Not enough seeds to call a change "
                f"significant: {VERDICT_SEEDS} are needed."
            )
        elif not worse:
            kept.append(label)
        if one.cut:
            lines.append(f"{label}: {plural(one.cut, 'prompt')} did not fit and lost tokens.")
    if kept:
        lines.append(f"No method is significantly worse on {listed(kept)}.")
    return lines


def _change(one: Retention, method: str) -> str:
    change = one.changes[method]
    small = detail(change, one.metric)
    return f"{method} {points(change.mean, one.metric)}{f' ({small})' if small else ''}"


def as_record(data: StudyData) -> dict[str, Any]:
    """The same for results.json, by pair under `forgotten`; empty where nothing was measured."""
    known = {pair: retentions(data, pair) for pair in data.study.models}
    measured_on = {
        pair: [
            {
                "name": one.metric.name,
                "metric": one.measure,
                "higher_is_better": one.metric.higher_is_better,
                "documents": one.documents,
                "untrained": asdict(one.untrained),
                "methods": {
                    m: {"level": asdict(one.levels[m]), "change": asdict(one.changes[m])}
                    for m in one.changes
                },
            }
            for one in measured
        ]
        for pair, measured in known.items()
        if measured
    }
    return {"forgotten": measured_on} if measured_on else {}
