"""The cost of the runs: tokens, time by activity, dollars, next to the prediction of pre-flight.

Costs are those of a run that reads no completions of other runs from the cache, so that the order
of a study's runs changes no cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.report.data import StudyData
from potstill.settings import Price
from potstill.training.spending import Spent, total
from potstill.types import ACTIVITIES, KINDS

EVALUATED = "graded"  # the tokens of evaluations and probes, prompts among them
SHOWN = ("prompt", *KINDS, EVALUATED)


@dataclass(frozen=True)
class TokenKind:
    """One kind of tokens of a method's runs, means over runs."""

    tokens: float
    flops: float | None  # None: unknown, or counted with the completions (prompts)


@dataclass(frozen=True)
class CostRow:
    """One method's finished runs on one pair, means over runs."""

    method: str
    runs: int
    spent: Spent  # alone, evaluations included
    predicted: Spent | None  # None where pre-flight was skipped
    usd: float | None  # None where no price is set
    predicted_usd: float | None
    usd_per_point: float | None  # of accuracy gained on the untrained student; None for no gain,
    # and where methods are compared by another number
    flops_per_point: float | None = None  # the same in operations; None where they are unknown too
    device_seconds: float | None = None  # times the devices that a run held; None: a service's
    peak_bytes: int | None = None  # the most memory that a run held; None: a service's
    saved: float | None = None  # seconds that the cache saved; None: none
    kinds: Mapping[str, TokenKind] = field(default_factory=dict)  # by the names in `SHOWN`
    sources: Mapping[str, float] = field(default_factory=dict)  # trained tokens by who wrote them


def costs(data: StudyData, pair: str) -> list[CostRow]:
    """A row for each method that has a finished run."""
    price, metric, before = data.study.price, data.metric, data.level(pair, "untrained")
    predictions = data.folder.predicted.get(pair, {})
    rows = []
    for method in data.recipes:
        done = list(data.done(pair, method).values())
        if not done:
            continue
        actual = total(map(Spent.read, done)) * (1 / len(done))
        spent = actual.alone
        levels = [level for record in done if (level := metric.of(record)) is not None]
        known = metric.share and levels and before is not None
        points = 100 * (sum(levels) / len(levels) - (before or 0.0)) if known else 0.0
        predicted = predictions[method].alone if method in predictions else None
        usd = _usd(spent, price)
        rows.append(
            CostRow(
                method=method,
                runs=len(done),
                spent=spent,
                predicted=predicted,
                usd=usd,
                predicted_usd=_usd(predicted, price) if predicted else None,
                usd_per_point=usd / points if usd is not None and points > 0 else None,
                flops_per_point=spent.flops / points if spent.flops and points > 0 else None,
                device_seconds=_device_seconds(done),
                peak_bytes=max((r.get("peak_bytes") or 0 for r in done), default=0) or None,
                saved=actual.saved or None,
                kinds={name: _kind(name, done) for name in SHOWN},
                sources=_sources(done),
            )
        )
    return rows


def _device_seconds(records: Sequence[Mapping[str, Any]]) -> float | None:
    held = [(record.get("devices"), Spent.read(record).alone.seconds) for record in records]
    if any(devices is None for devices, _ in held):
        return None
    return sum((devices or 0) * seconds for devices, seconds in held) / len(held)


def _kind(name: str, records: Sequence[Mapping[str, Any]]) -> TokenKind:
    def counted(key: str) -> bool:
        return key.startswith(f"{EVALUATED}_") if name == EVALUATED else key == name

    tokens = sum(n for r in records for k, n in (r.get("tokens") or {}).items() if counted(k))
    work = [r.get("flops") or {} for r in records]
    known = all(work) and name != "prompt"
    flops = sum(by_kind.get(name, 0.0) for by_kind in work) / len(records) if known else None
    return TokenKind(tokens / len(records), flops)


SOURCES = ("student", "teacher", "file")


def _sources(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Tokens that a run trained on, by who wrote them; empty if a record does not have them."""
    known = [record.get("token_sources") for record in records]
    if not all(known):
        return {}
    counts = [by_source for by_source in known if by_source]
    names = dict.fromkeys([*SOURCES, *(name for by_source in counts for name in by_source)])
    means = {name: sum(c.get(name, 0) for c in counts) / len(counts) for name in names}
    return {name: mean for name, mean in means.items() if mean}


def sourced(rows: Sequence[CostRow]) -> tuple[str, ...]:
    """The sources worth a table: some method has several, or completions of a file."""
    if not any(len(row.sources) > 1 or "file" in row.sources for row in rows):
        return ()
    return tuple(dict.fromkeys(name for name in SOURCES for row in rows if name in row.sources))


def _usd(spent: Spent, price: Price) -> float | None:
    return None if price == Price() else spent.usd(price)


def off(predicted: float, actual: float) -> str:
    """The error of a prediction, as a share of the actual value.

    >>> off(11.0, 10.0), off(9.0, 10.0), off(9.99, 10.0)
    ('+10 %', '−10 %', '+0 %')
    """
    if not actual:
        return ""
    return f"{round(100 * (predicted / actual - 1)) + 0:+d} %".replace("-", "−")


@dataclass(frozen=True)
class Profile:
    """One method's runs on a pair, means over runs."""

    method: str
    seconds: float
    activities: Mapping[str, float]  # seconds of every activity of the pair, in a fixed order

    def share(self, activity: str) -> float:
        """The activity's share of the run."""
        return self.activities[activity] / (self.seconds or 1.0)


def profiles(data: StudyData, pair: str) -> list[Profile]:
    """The profile of each method that has a finished run on the pair."""
    spent: dict[str, dict[str, float]] = {}
    for method in data.recipes:
        records = data.done(pair, method).values()
        if done := [activity for record in records if (activity := record.get("activity"))]:
            names = {name for activity in done for name in activity}
            spent[method] = {n: sum(a.get(n, 0.0) for a in done) / len(done) for n in names}
    names = {name for means in spent.values() for name in means}
    shown = [name for name in ACTIVITIES if name in names]
    shown += sorted(names - set(ACTIVITIES))  # an earlier version's
    return [
        Profile(method, sum(means.values()), {name: means.get(name, 0.0) for name in shown})
        for method, means in spent.items()
    ]
