"""What the runs took beside what pre-flight predicted, and what a point of accuracy cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.report.data import StudyData
from potstill.settings import Price
from potstill.training.spending import Spent, total
from potstill.types import KINDS

GRADED = "graded"  # the tokens of gradings and probes, prompts among them
SHOWN = ("prompt", *KINDS, GRADED)


@dataclass(frozen=True)
class Kind:
    """One kind of tokens of a method's runs, means over runs."""

    tokens: float
    flops: float | None  # None: unknown, or counted with the completions (prompts)


@dataclass(frozen=True)
class CostRow:
    """One method's finished runs on one pair, means over runs."""

    method: str
    runs: int
    spent: Spent  # gradings included
    predicted: Spent | None  # None where pre-flight was skipped
    usd: float | None  # None where no price is set
    predicted_usd: float | None
    usd_per_point: float | None  # of accuracy gained on the untrained student; None for no gain
    flops_per_point: float | None = None  # the same in operations; None where they are unknown too
    device_seconds: float | None = None  # times the devices that a run held; None: a service's
    peak_bytes: int | None = None  # the most memory that a run held; None: a service's
    kinds: Mapping[str, Kind] = field(default_factory=dict)  # by the names in `SHOWN`


def costs(data: StudyData, pair: str) -> list[CostRow]:
    """A row for each method that has a finished run."""
    price, before = data.study.price, data.accuracy(pair, "untrained")
    predicted = data.folder.predicted.get(pair, {})
    found = []
    for method in data.recipes:
        done = [run.record for run in data.of(pair, method) if run.status == "done"]
        if not done:
            continue
        spent = total(map(Spent.read, done)) * (1 / len(done))
        accuracy = sum(record["accuracy"] for record in done) / len(done)
        points = 100 * (accuracy - before) if before is not None else 0.0
        usd, told = _usd(spent, price), predicted.get(method)
        found.append(
            CostRow(
                method=method,
                runs=len(done),
                spent=spent,
                predicted=told,
                usd=usd,
                predicted_usd=_usd(told, price) if told else None,
                usd_per_point=usd / points if usd is not None and points > 0 else None,
                flops_per_point=spent.flops / points if spent.flops and points > 0 else None,
                device_seconds=_device_seconds(done),
                peak_bytes=max((r.get("peak_bytes") or 0 for r in done), default=0) or None,
                kinds={name: _kind(name, done) for name in SHOWN},
            )
        )
    return found


def _device_seconds(records: Sequence[Mapping[str, Any]]) -> float | None:
    held = [(record.get("devices"), Spent.read(record).seconds) for record in records]
    if any(devices is None for devices, _ in held):
        return None
    return sum((devices or 0) * seconds for devices, seconds in held) / len(held)


def _kind(name: str, records: Sequence[Mapping[str, Any]]) -> Kind:
    def mine(key: str) -> bool:
        return key.startswith(f"{GRADED}_") if name == GRADED else key == name

    tokens = sum(n for r in records for k, n in (r.get("tokens") or {}).items() if mine(k))
    work = [r.get("flops") or {} for r in records]
    known = all(work) and name != "prompt"
    flops = sum(by_kind.get(name, 0.0) for by_kind in work) / len(records) if known else None
    return Kind(tokens / len(records), flops)


def _usd(spent: Spent, price: Price) -> float | None:
    return None if price == Price() else spent.usd(price)


def off(told: float, was: float) -> str:
    """How far a prediction was off, as a share of what it was.

    >>> off(11.0, 10.0), off(9.0, 10.0), off(9.99, 10.0)
    ('+10 %', '−10 %', '+0 %')
    """
    if not was:
        return ""
    return f"{round(100 * (told / was - 1)) + 0:+d} %".replace("-", "−")
