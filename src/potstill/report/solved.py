"""Which problems each method solves: a map of problems by methods, and what it comes to in words.

A field is the share of a method's seeds that solved the problem, strict extractor. Problems are
ordered from the one that most methods solve to the one that fewest do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from potstill.report.data import StudyData
from potstill.report.learning import Spec, layout
from potstill.report.stats import Matrix, outcome_matrix
from potstill.study.storage import REFERENCES

WIDEST = 1000  # columns; more problems than that share them


def shares(data: StudyData, pair: str) -> dict[str, Matrix]:
    """Share of seeds (P,) that solved each problem, by method and reference row."""
    found = {}
    for method in [*REFERENCES, *data.recipes]:
        records = [run.record for run in data.of(pair, method) if run.status == "done"]
        if records:
            found[method] = outcome_matrix(records).mean(0)
    lengths = {len(share) for share in found.values()}
    return found if len(lengths) == 1 else {}


def problem_map(known: Mapping[str, Matrix]) -> Spec:
    """The map, one trace a method so that one can be singled out."""
    order = ordered(known)
    width = max(1, -(-len(order) // WIDEST))
    columns = [order[i : i + width] for i in range(0, len(order), width)]
    named = [int(column[0]) + 1 for column in columns]
    drawn = layout()
    drawn["margin"] |= {"t": 46, "r": 10}
    # rows by number: on an axis of categories plotly wants all of them in one trace
    ticks = {"tickvals": list(range(len(known))), "ticktext": list(known), "tickmode": "array"}
    drawn["yaxis"] |= {"autorange": "reversed", **ticks}
    drawn["xaxis"] |= {"title": {"text": "held-out problems, easiest first"}, "showgrid": False}
    drawn["yaxis"] |= {"showgrid": False}
    drawn["coloraxis"] = {"colorscale": "Cividis", "cmin": 0, "cmax": 1, "colorbar": _bar()}
    rows = enumerate(known.items())
    return {"data": [_row(y, m, s, columns, named) for y, (m, s) in rows], "layout": drawn}


def ordered(known: Mapping[str, Matrix]) -> Any:
    """Indices of the problems, from the one that most methods solve on."""
    rows = [known[m] for m in known if m not in REFERENCES] or list(known.values())
    return np.argsort(-np.mean(rows, axis=0), kind="stable")


def _row(y: int, method: str, share: Matrix, columns: list[Any], named: list[int]) -> Spec:
    text = f"<b>{method}</b><br>problem %{{customdata}} of the test set<br>solved by %{{z:.0%}}"
    return {
        "type": "heatmap",
        "name": method,
        "meta": {"method": method, "part": "solved"},
        "y": [y],
        "x": list(range(1, len(columns) + 1)),
        "z": [[round(float(share[column].mean()), 2) for column in columns]],
        "customdata": [named],
        "coloraxis": "coloraxis",
        "ygap": 3,
        "hovertemplate": f"{text} of its seeds<extra></extra>",
    }


def _bar() -> Spec:
    return {
        "orientation": "h",
        "thickness": 8,
        "lenmode": "pixels",
        "len": 190,
        "x": 1,
        "xanchor": "right",
        "y": 1.02,
        "yanchor": "bottom",
        "tickformat": ".0%",
        "tickvals": [0, 0.5, 1],
        "title": {"text": "share of seeds", "side": "top", "font": {"size": 11}},
    }


def in_words(known: Mapping[str, Matrix]) -> str:
    """How far the methods solve the same problems."""
    mine = {m: share > 0.5 for m, share in known.items() if m not in REFERENCES}
    if not mine:
        return ""
    stacked = np.array(list(mine.values()))
    solvers = stacked.sum(0)
    every, none = int((solvers == len(mine)).sum()), int((solvers == 0).sum())
    words = f"In most seeds, all {len(mine)} methods solve {every} of {stacked.shape[1]} problems"
    words += f" and none solves {none}."
    alone = {m: int((solved & (solvers == 1)).sum()) for m, solved in mine.items()}
    told = [f"{method} {n}" for method, n in alone.items() if n]
    if len(mine) > 1 and told:
        words += f" Solved by one method alone: {', '.join(told)}."
    return words if len(mine) > 1 else ""
