"""Results by the key that chooses among several teachers: the gain on each teacher's problems.

A mean over all problems hides that the problems of a weak teacher do not improve. It judges
nothing, and is empty for a pair with one teacher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from potstill.report.data import StudyData
from potstill.report.results import Record, outcome_matrix
from potstill.stats.comparisons import Comparisons, Interval
from potstill.stats.mean_squares import mean_squares
from potstill.stats.metric import Metric
from potstill.study.storage import REFERENCES


@dataclass(frozen=True)
class Route:
    """One value of the key and the teacher that reads its problems."""

    value: str  # empty: problems that have none under the key
    teacher: str
    problems: int  # held-out problems that are evaluated


@dataclass(frozen=True)
class Routes:
    """One pair whose teachers share the problems."""

    pair: str
    key: str
    values: tuple[Route, ...]
    rows: Mapping[str, Sequence[Interval | None]]  # method -> level, in the order of `values`
    metric: Metric


def routes(data: StudyData, pair: str) -> Routes | None:
    """A pair with several teachers and a finished run; None for any other."""
    models = data.study.models[pair]
    done = {
        row.method: list(data.done(pair, row.method).values())
        for row in data.rows
        if row.pair == pair
    }
    routed = [record for records in done.values() for record in records if record.get("routes")]
    if not models.route or not routed:
        return None
    by_problem = np.array(routed[0]["routes"])
    values = tuple(
        Route(value, models.teachers.get(value, models.teacher), problems)
        for value, problems in Counter(by_problem.tolist()).most_common()
    )
    rows: dict[str, list[Interval | None]] = {method: [] for method in done}
    for route in values:
        of_route = _family(done, by_problem == route.value, data.metric)
        for method in done:
            known = method in of_route.samples
            rows[method].append(of_route.interval(method) if known else None)
    return Routes(pair, models.route, values, rows, data.metric)


def _family(
    done: Mapping[str, Sequence[Record]], problems: npt.NDArray[np.bool_], metric: Metric
) -> Comparisons:
    return Comparisons(
        {
            method: mean_squares(
                outcome_matrix(records, metric.key)[:, problems],
                seeded=method not in REFERENCES,
                shares=metric.share,
            )
            for method, records in done.items()
            if records
        }
    )
