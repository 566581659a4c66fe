"""The page of a study: the values that its template shows.

Escaping is the template engine's, on for everything; `bundle` adds style, scripts and the policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from potstill.diagnostics.faults import FAULTS
from potstill.engines import zoo
from potstill.report import forgotten, published, sentences
from potstill.report.charts.palette import Look
from potstill.report.charts.spec import Chart
from potstill.report.completions import samples
from potstill.report.costs import costs, profiles
from potstill.report.data import StudyData
from potstill.report.findings import FindingGroup, notes
from potstill.report.forgotten import retentions
from potstill.report.formatting import settings
from potstill.report.pages import bundle
from potstill.report.race import look_line, named_looks, races
from potstill.report.routes import routes
from potstill.report.summary import Summary
from potstill.report.tables import methods, more
from potstill.report.tables import race as race_tables

Sections = Mapping[str, Sequence[Chart]]  # charts by heading


def render(
    data: StudyData,
    looks: Mapping[str, Look],
    groups: Sequence[FindingGroup],
    summary: Summary,
    sections: Mapping[str, Sections],
) -> str:
    """The whole page as HTML; `sections` are the charts of each pair."""
    runs, columns = data.runs.values(), methods.columns(data)
    recorded = {run.cell.method for run in runs if run.metrics}
    return bundle.render(
        "page.html.j2",
        data=data,
        study=data.study,
        looks=looks,
        faults=[FAULTS[name] for name in data.study.faults],
        answers=sentences.answers(summary),
        untested=sentences.untested(summary),
        groups=list(groups),
        notes=notes(data),
        pairs=[_pair(data, pair, summary, charts) for pair, charts in sections.items()],
        columns=methods.chosen(columns, methods.page_keys(data.metrics)),
        metric=data.metric,
        priced="usd" in columns,
        published_cost=published.COST,
        methods=[m for m in data.recipes if m in recorded],
        failed=[run for run in runs if run.status == "failed"],
        unfinished=[run for run in runs if run.status == "missing"],
        settings=settings(data.study.to_toml()),
        others=_others(data),
    )


def _pair(data: StudyData, pair: str, summary: Summary, sections: Sections) -> dict[str, Any]:
    models, verdict, routed = data.study.models[pair], summary.verdicts[pair], routes(data, pair)
    taught = models.teacher and model(pair, "teacher", models.teacher)
    spent, profile, race = costs(data, pair), profiles(data, pair), races(data).get(pair)
    return {
        "name": pair,
        "student": model(pair, "student", models.student),
        "teacher": taught,  # empty: the pair has none
        "rows": [row for row in data.rows if row.pair == pair],
        "caveat": published.caveat(data.study, pair),
        "head": sentences.headline(verdict),
        "reasons": sentences.reasons(verdict),
        "recommended": (verdict.choice,),
        "power": sentences.ability(summary.power[pair]),
        "routes": routed,
        "teachers": more.teachers(routed, named) if routed else (),
        "sections": sections,
        "costs": (more.costs(spent), spent),
        "kinds": (more.token_kinds(spent), spent),
        "sources": (more.sources(spent), spent),
        "forgotten": more.forgotten(known) if (known := retentions(data, pair)) else (),
        "losses": forgotten.sentences(data, pair),
        "times": (more.times(profile), profile),
        "samples": samples(data, pair),
        "race": race,
        "drops": race_tables.drops(race) if race else (),
        "looks": [look_line(*look) for look in named_looks(race.course)] if race else (),
    }


def model(pair: str, role: str, name: str) -> str:
    """A model's name; the folder of an embedded one is not shown."""
    embedded = pair in zoo.PAIRS and name == zoo.folder(pair, role)
    return f"{pair} (embedded)" if embedded else named(name)


def named(name: str) -> str:
    """The same for a model of any pair."""
    known = {zoo.folder(*one): "/".join(one) for one in zoo.MODELS}
    return f"{known[name]} (embedded)" if name in known else name


def _others(data: StudyData) -> dict[str, list[str]]:
    """Provenance in which runs differ from the study's start: key -> the other values."""
    values: dict[str, set[str]] = {}
    for run in data.runs.values():
        for key, value in (run.record.get("provenance") or {}).items():
            if value != data.provenance.get(key):
                values.setdefault(key, set()).add(str(value))
    return {key: sorted(others) for key, others in sorted(values.items())}
