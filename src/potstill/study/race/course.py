"""The course of a race on one pair, from the records of its runs.

A course is derived, not kept: the same records give the same looks, so a race that was interrupted
continues as if it had not been. Looks that are stored are reused as long as their records have not
changed, so that a later version of the statistics does not rewrite a decision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from potstill.stats.mean_squares import Matrix
from potstill.study.race.decision import Decision, End, Entry, decide
from potstill.study.race.rules import Rules
from potstill.study.storage import REFERENCES, RunId

Record = Mapping[str, Any]  # a run's result.json
Records = Mapping[RunId, Record]
Stored = Mapping[str, Decision]  # by the digest of the records that it was made from


@dataclass(frozen=True)
class Course:
    """The race on one pair so far."""

    pair: str
    screen: Decision | None
    looks: tuple[Decision, ...]
    racing: tuple[str, ...]  # methods that no look has dropped
    planned: tuple[RunId, ...]  # runs so far and those that the next look needs
    fresh: tuple[int, ...]  # the finalists' seeds, once the race has ended
    digests: tuple[str, ...]  # of the screen, if there is one, and of the looks

    @property
    def ended(self) -> End:
        """Why no look follows; empty before. The finalists' fresh runs may still be missing."""
        if self.looks:
            return self.looks[-1].ended
        return "none left" if self.screen and not self.racing else ""

    @property
    def finalists(self) -> tuple[str, ...]:
        """Methods that the race did not tell apart; empty before it has ended."""
        return self.racing if self.ended else ()

    def reports(self, run: RunId) -> bool:
        """False for a run that results leave out: the race decided on it and has fresh ones."""
        return not self.fresh or run.seed is None or run.seed in self.fresh

    @property
    def dropped(self) -> dict[str, Decision]:
        """The look at which each method was dropped."""
        looks = (*([self.screen] if self.screen else []), *self.looks)
        return {method: look for look in looks for method in look.dropped}


def course(
    pair: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    rules: Rules,
    records: Records,
    screened: Records,
    stored: Stored,
    baselines: Sequence[str] = REFERENCES,
) -> Course:
    """The course of a race on one pair.

    Args:
        pair: its name.
        methods: names in the study's order.
        seeds: all seeds that the race may use, deciding ones first.
        rules: of the race.
        records: of the runs that have ended.
        screened: of the screen's runs that have ended.
        stored: decisions of earlier calls.
        baselines: of the pair.
    """
    racing, looks, digests, screen = tuple(methods), [], [], None
    levels, first = rules.levels, seeds[:1]
    planned = [RunId(pair, role) for role in reversed(baselines)]
    if rules.screen:
        if not _complete(screened, _runs(pair, racing, first)):
            return Course(pair, None, (), racing, tuple(planned), (), ())
        screen, digest = _look(
            pair, racing, first, screened, stored, level=levels[0], within=0.0, last=False
        )
        digests.append(digest)
        racing = screen.survivors
    for level, count in zip(levels, rules.looks, strict=True):
        runs = _runs(pair, racing, seeds[:count])
        planned += [run for run in runs if run not in planned]
        if not racing or not _complete(records, planned):
            break
        last, within = count == rules.looks[-1], rules.within / 100
        look, digest = _look(
            pair, racing, seeds[:count], records, stored, level=level, within=within, last=last
        )
        looks.append(look)
        digests.append(digest)
        racing = look.survivors
        if look.ended:
            break
    fresh = rules.fresh_of(seeds) if looks and looks[-1].ended else ()
    planned += _runs(pair, racing, fresh)
    return Course(pair, screen, tuple(looks), racing, tuple(planned), fresh, tuple(digests))


def _runs(pair: str, methods: Sequence[str], seeds: Sequence[int]) -> list[RunId]:
    return [RunId(pair, method, seed) for seed in seeds for method in methods]


def _complete(records: Records, runs: Sequence[RunId]) -> bool:
    return all(run in records for run in runs)


def _look(
    pair: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    records: Records,
    stored: Stored,
    **terms: Any,
) -> tuple[Decision, str]:
    """The decision at one look, with the digest of the records that it was made from."""
    baseline = records[RunId(pair, "untrained")]
    runs = {m: [records[RunId(pair, m, seed)] for seed in seeds] for m in methods}
    facts = [terms, _facts(baseline), {m: [*map(_facts, own)] for m, own in runs.items()}]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    if digest in stored:
        return stored[digest], digest
    broken = _failure(baseline, "the untrained baseline")
    entries = {method: _entry(own, broken) for method, own in runs.items()}
    untrained = np.zeros(0) if broken else _outcomes([baseline])[0]
    clusters = baseline.get("clusters")
    return decide(entries, untrained, seeds=len(seeds), clusters=clusters, **terms), digest


def _facts(record: Record) -> list[Any]:
    """The part of a record that decisions depend on."""
    values = [record.get(key) for key in ("status", "outcomes", "clusters", "cause")]
    return [*values, _collapsed(record)]


def _entry(records: Sequence[Record], broken: str) -> Entry:
    failures = [_failure(record, f"seed {record['seed']}") for record in records]
    failed = broken or next(filter(None, failures), "")
    if failed:
        return Entry(np.zeros((0, 0)), failed=failed)
    return Entry(_outcomes(records), sum(map(_collapsed, records)))


def _failure(record: Record, name: str) -> str:
    return f"{name}: {record.get('cause', '')}" if record["status"] == "failed" else ""


def _collapsed(record: Record) -> bool:
    return any(finding["kind"] == "collapse" for finding in record.get("findings") or ())


def _outcomes(records: Sequence[Record]) -> Matrix:
    """Strict outcomes (S, P)."""
    return np.array([[float(c) for c in record["outcomes"]["strict"]] for record in records])
