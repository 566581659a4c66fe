"""Problem heat map: which problems each method solves, and a summary of it in words.

A field is the share of a method's seeds that solved the problem, strict extractor, or the mean
grade where grades are more than right and wrong. Problems are ordered from the one that most
methods solve to the one that fewest do. Without a grader there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from potstill.report.charts.spec import Spec, chart, names, number, record, tooltip
from potstill.report.data import StudyData
from potstill.report.results import outcome_matrix
from potstill.stats.mean_squares import Matrix
from potstill.study.storage import REFERENCES

WIDEST = 1000  # columns; more problems than that share them
LEGEND = {"orient": "top", "direction": "horizontal", "format": ".0%", "values": [0, 0.5, 1]}


def shares(data: StudyData, pair: str) -> dict[str, Matrix]:
    """Share of seeds (P,) that solved each problem: untrained, teacher, then the methods."""
    if not data.metric.share:
        return {}
    known = {
        method: outcome_matrix(records.values(), data.metric.key).mean(0)
        for method in [*REFERENCES, *data.recipes]
        if (records := data.done(pair, method))
    }
    return known if len({len(share) for share in known.values()}) == 1 else {}


def heat_map(known: Mapping[str, Matrix], meaning: str = "share of seeds") -> Spec:
    """The map, one record a method.

    Args:
        known: of each method, (P,) in [0, 1].
        meaning: of the numbers.
    """
    share = number("y", meaning, legend=LEGEND)
    share["scale"] = {"scheme": "cividis", "domain": [0, 1]}
    rows = [known[m] for m in known if m not in REFERENCES] or list(known.values())
    order = np.argsort(-np.mean(rows, axis=0), kind="stable")
    width = max(1, -(-len(order) // WIDEST))
    columns = [order[i : i + width] for i in range(0, len(order), width)]
    ids, n = [int(column[0]) + 1 for column in columns], len(columns)
    values = [
        record(method, "solved", list(range(n)), _means(solved, columns), problem=ids)
        for method, solved in known.items()
    ]
    end: Spec = {"calculate": f"min(datum.x + 1.4, {n})", "as": "end"}  # over the next: no gaps
    scale = {"domain": [0, n], "nice": False, "padding": 0}
    x = number("x", "held-out problems, easiest first", scale, axis={"grid": False})
    label = tooltip(method="method", problem="problem", solved_by="y|.0%")
    flat: list[Spec] = [{"flatten": ["x", "y", "problem"]}, end]
    y = names("method", list(known))
    spec = chart("heat map", values, {}, x, y, flat, share=share, tooltip=label)
    return spec | {"usermeta": {"x": "problem", "y": meaning}}


def _means(solved: Matrix, columns: list[Any]) -> list[float]:
    return [round(float(solved[column].mean()), 2) for column in columns]


def in_words(known: Mapping[str, Matrix]) -> str:
    """The overlap of the problems that methods solve; empty for fewer than two methods."""
    solved = {m: share > 0.5 for m, share in known.items() if m not in REFERENCES}
    if len(solved) < 2:
        return ""
    solvers = np.sum(list(solved.values()), axis=0)
    every, none = int((solvers == len(solved)).sum()), int((solvers == 0).sum())
    words = f"In most seeds, all {len(solved)} methods solve {every} of {len(solvers)} problems"
    words += f" and none solves {none}."
    alone = {m: int((right & (solvers == 1)).sum()) for m, right in solved.items()}
    only = [f"{method} {n}" for method, n in alone.items() if n]
    return f"{words} Solved by one method alone: {', '.join(only)}." if only else words
