"""What training made worse elsewhere: benchmarks of lm-eval, and the loss on a text file.

Both are measured on the untrained student and on each trained one, and are compared document by
document (chunk by chunk of the text). p-values are corrected over the methods of one benchmark. It
judges no cause, and a loss that is not significant may still be there: the interval has its size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from potstill.report.data import StudyData
from potstill.report.formatting import detail, listed, points
from potstill.report.results import Record, family
from potstill.stats.comparisons import VERDICT_SEEDS, Difference, Interval
from potstill.stats.metric import Metric

DRIFT = "drift"
# Words in the names of lm-eval's metrics of which less is better.
LESS = {"perplexity", "bits", "loss", "brier", "wer", "ter", "error"}


@dataclass(frozen=True)
class Retention:
    """One benchmark on one pair."""

    metric: Metric
    measure: str  # lm-eval's name of the number; empty for the loss on a text file
    documents: int
    untrained: Interval
    levels: Mapping[str, Interval]  # by method
    changes: Mapping[str, Difference]  # by method: trained minus untrained

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
    values = {
        method: {seed: known for seed, r in records.items() if (known := _values(r, name))}
        for method, records in done.items()
    }
    measures = {known[0] for records in values.values() for known in records.values()}
    if len(measures) != 1 or not values["untrained"]:
        return None
    (measure,) = measures
    outcomes = [known[1] for records in values.values() for known in records.values()]
    metric = _metric(name, measure, outcomes)
    compared = family(
        {
            method: {seed: {"outcomes": {name: known[1]}} for seed, known in records.items()}
            for method, records in values.items()
        },
        metric,
    )
    methods = [m for m in compared.samples if m != "untrained"]
    if "untrained" not in compared.samples or not methods:
        return None
    return Retention(
        metric,
        measure,
        len(compared.samples["untrained"].columns),
        compared.interval("untrained"),
        {m: compared.interval(m) for m in methods},
        {m: compared[m, "untrained"] for m in methods},
    )


def _values(record: Record, name: str) -> tuple[str, Sequence[Any]] | None:
    """The name of the number and the outcomes; None where the record has none."""
    if name == DRIFT:
        return ("", record[DRIFT]) if record.get(DRIFT) else None
    known = (record.get("benchmarks") or {}).get(name)
    return (known["metric"], known["outcomes"]) if known and known["outcomes"] else None


def _metric(name: str, measure: str, outcomes: Sequence[Sequence[Any]]) -> Metric:
    """The number as the rest of the report shows it: shares of documents in per cent."""
    less = not measure or bool(LESS & {*re.findall("[a-z]+", measure.lower())})
    share = not less and all(0 <= float(x) <= 1 for values in outcomes for x in values)
    if share:
        label = f"{name} ({measure})"
        return Metric(
            name, name, label, "%", "points", 100.0, 1, True, True, f"{measure} of lm-eval."
        )
    label, unit = f"{name} ({measure})", measure
    if not measure:
        label, unit = "loss on the text file", "nats per token"
    return Metric(name, name, label, unit, unit, 1.0, 3, not less, False, "")


def sentences(data: StudyData, pair: str) -> list[str]:
    """What was forgotten, in words: a line for each benchmark with a significant change."""
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
