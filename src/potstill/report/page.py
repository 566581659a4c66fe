"""The page of a study: what the template shows, and numbers as text.

Escaping is the template engine's, on for everything; `bundle` adds style, scripts and the policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.diagnostics.faults import FAULTS
from potstill.engines import zoo
from potstill.report import bundle, numbers, stats
from potstill.report.bundle import data_block
from potstill.report.charts import charts
from potstill.report.costs import costs, off
from potstill.report.data import StudyData
from potstill.report.findings import Grouped, watched
from potstill.report.palette import Look
from potstill.report.profile import profiles
from potstill.report.published import caveat, column
from potstill.report.reading import clear
from potstill.report.routes import routes
from potstill.report.summary import answers, untested
from potstill.report.table import published, seeds_done
from potstill.report.texts import samples, visible
from potstill.report.verdict import Choice
from potstill.study.storage import REFERENCES


def render(
    data: StudyData,
    looks: Mapping[str, Look],
    groups: Sequence[Grouped],
    chosen: dict[str, Choice],
) -> str:
    """The whole page as HTML."""
    pairs = [_pair(data, pair, looks, groups, chosen[pair]) for pair in data.study.models]
    return bundle.render(
        "page.html.j2",
        FILTERS,
        data=data,
        study=data.study,
        looks=looks,
        faults=[FAULTS[name] for name in data.study.faults],
        answers=answers(data, groups, chosen),
        untested=untested(data),
        groups=groups,
        watched=watched(data.runs),
        pairs=pairs,
        methods=[m for m in data.recipes if any(m in pair["seen"] for pair in pairs)],
        failed=[run for run in data.runs.values() if run.status == "failed"],
        unfinished=[run for run in data.runs.values() if run.status == "missing"],
        settings=numbers.settings(data.study.to_toml()),
        provenance=data.provenance,
        others=_others(data),
        clear=clear,
        seeds_done=seeds_done,
        baseline=stats.BASELINE,
        off=off,
        resamples=stats.RESAMPLES,
        references=REFERENCES,
    )


def _pair(
    data: StudyData,
    pair: str,
    looks: Mapping[str, Look],
    groups: Sequence[Grouped],
    choice: Choice,
) -> dict[str, Any]:
    rows = [row for row in data.rows if row.pair == pair]
    models = data.study.models[pair]
    known = column(pair, models)
    parts = charts(data, pair, dict(looks), groups)
    spent = costs(data, pair)
    return {
        "name": pair,
        "student": model(pair, "student", models.student),
        "teacher": model(pair, "teacher", models.teacher),
        "rows": rows,
        "published": {row.method: published(data, row) for row in rows},
        "column": known,
        "caveat": caveat(known, models, str(data.study.task.get("name"))) if known else "",
        "routes": routes(data, pair),
        "choice": choice,
        "kl": {method: _kl(data, pair, method) for method in data.recipes},
        "parts": [(part.title, [(c, data_block(c.spec)) for c in part.charts]) for part in parts],
        "samples": samples(data, pair),
        "profiles": profiles(data, pair),
        "costs": spent,
        "cost": {row.method: row for row in spent},
        "seen": {m for m in data.recipes if any(run.metrics for run in data.of(pair, m))},
    }


def _kl(data: StudyData, pair: str, method: str) -> float | None:
    """KL(student, teacher) at the last probe, nats per token, mean over finished runs."""
    last = []
    for run in data.of(pair, method):
        known = [row.get("train/kl_divergence") for row in run.metrics]
        found = [x for x in known if isinstance(x, int | float) and math.isfinite(x)]
        last += found[-1:] if run.status == "done" else []
    return sum(last) / len(last) if last else None


def model(pair: str, role: str, name: str) -> str:
    """A model's name; where an embedded one lies on this machine is nobody's business."""
    embedded = pair in zoo.PAIRS and name == zoo.folder(pair, role)
    return f"{pair} (embedded)" if embedded else named(name)


def named(name: str) -> str:
    """The same for a model of any pair."""
    known = {zoo.folder(*one): "/".join(one) for one in zoo.MODELS}
    return f"{known[name]} (embedded)" if name in known else name


def _others(data: StudyData) -> dict[str, list[str]]:
    """Provenance in which cells differ from the study's start: key -> the other values."""
    found: dict[str, set[str]] = {}
    for run in data.runs.values():
        for key, value in (run.record.get("provenance") or {}).items():
            if value != data.provenance.get(key):
                found.setdefault(key, set()).add(str(value))
    return {key: sorted(values) for key, values in sorted(found.items())}


FILTERS: dict[str, Any] = {
    "named": named,
    "dollars": numbers.dollars,
    "per_cent": lambda value: numbers.per_cent(value).replace("-", "−"),
    "signed": numbers.signed,
    "p_value": numbers.p_value,
    "count": numbers.count,
    "duration": numbers.duration,
    "sortable": lambda value: f"{value:.8g}" if FILTERS["finite"](value) else "",
    "visible": visible,
    "finite": lambda value: value is not None and math.isfinite(value),
}
