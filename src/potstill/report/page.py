"""The page: one HTML file with its style, scripts and data, which asks the network for nothing.

Escaping is the template engine's, on for everything; a content security policy with the hashes of
our own scripts forbids any other script and any request. Numbers become text here and in no other
place.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from potstill import stats, zoo
from potstill.faults import FAULTS
from potstill.report.charts import charts
from potstill.report.costs import costs, off
from potstill.report.data import StudyData
from potstill.report.findings import grouped, watched
from potstill.report.palette import Look
from potstill.report.profile import profiles
from potstill.report.published import caveat, column
from potstill.report.reading import caveats, clear, reading
from potstill.report.table import per_cent, published, seeds_done
from potstill.report.texts import samples, visible
from potstill.store import REFERENCES


def render(data: StudyData, looks: Mapping[str, Look]) -> str:
    """The whole page as HTML."""
    from plotly.offline import get_plotlyjs

    scripts = [_plain(get_plotlyjs()), _plain(_asset("page.js"))]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= FILTERS
    return environment.from_string(_asset("page.html.j2")).render(
        policy=_policy(scripts),
        style=Markup(_asset("page.css")),
        scripts=[Markup(text) for text in scripts],
        data=data,
        study=data.study,
        looks=looks,
        faults=[FAULTS[name] for name in data.study.faults],
        caveats=caveats(data),
        groups=grouped(data),
        watched=watched(data.runs),
        pairs=[_pair(data, pair, looks) for pair in data.study.models],
        failed=[run for run in data.runs.values() if run.status == "failed"],
        unfinished=[run for run in data.runs.values() if run.status == "missing"],
        settings=settings(data.study.to_toml()),
        provenance=data.provenance,
        others=_others(data),
        clear=clear,
        seeds_done=seeds_done,
        baseline=stats.BASELINE,
        off=off,
        resamples=stats.RESAMPLES,
        references=REFERENCES,
    )


def _pair(data: StudyData, pair: str, looks: Mapping[str, Look]) -> dict[str, Any]:
    rows = [row for row in data.rows if row.pair == pair]
    models = data.study.models[pair]
    known = column(pair, models)
    drawn = charts(data, pair, dict(looks))
    return {
        "name": pair,
        "student": _model(pair, "student", models.student),
        "teacher": _model(pair, "teacher", models.teacher),
        "rows": rows,
        "published": {row.method: published(data, row) for row in rows},
        "column": known,
        "caveat": caveat(known, models, str(data.study.task.get("name"))) if known else "",
        "reading": reading(data, pair),
        "charts": [(chart, _data_block(chart.spec)) for chart in drawn],
        "samples": samples(data, pair),
        "profiles": profiles(data, pair),
        "costs": costs(data, pair),
        "methods": [m for m in data.recipes if any(run.metrics for run in data.of(pair, m))],
    }


def _model(pair: str, role: str, name: str) -> str:
    """A model's name; where an embedded one lies on this machine is nobody's business."""
    embedded = pair in zoo.PAIRS and name == zoo.folder(pair, role)
    return f"{pair} (embedded)" if embedded else name


def _asset(name: str) -> str:
    return (files("potstill.report") / name).read_text(encoding="utf-8")


def _plain(script: str) -> str:
    """A script as a browser hashes it, and without an end tag inside."""
    assert "</script" not in script.lower()
    return script.replace("\r\n", "\n").replace("\r", "\n")


def _policy(scripts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _data_block(spec: Mapping[str, Any]) -> Markup:
    """JSON for a script element: no `<` can end it."""
    text = json.dumps(spec, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c"))


def settings(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested table as dotted keys and short texts."""
    found: list[tuple[str, str]] = []
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found += settings(value, f"{name}.")
        elif isinstance(value, list) and all(isinstance(v, str | int) for v in value):
            found.append((name, ", ".join(map(str, value))))
        else:
            found.append((name, json.dumps(value, ensure_ascii=False)))
    return found


def _others(data: StudyData) -> dict[str, list[str]]:
    """Provenance in which cells differ from the study's start: key -> the other values."""
    found: dict[str, set[str]] = {}
    for run in data.runs.values():
        for key, value in (run.record.get("provenance") or {}).items():
            if value != data.provenance.get(key):
                found.setdefault(key, set()).add(str(value))
    return {key: sorted(values) for key, values in sorted(found.items())}


def signed(value: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "−")  # + 0.0: no negative zero


def p_value(value: float) -> str:
    return "" if not math.isfinite(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(value: float | None) -> str:
    """A number of tokens, three digits.

    >>> count(1234567), count(None)
    ('1.23 M', '')
    """
    if value is None:
        return ""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """A time, in the two units that matter.

    >>> duration(42.3), duration(3725)
    ('42 s', '1 h 02 min')
    """
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, left = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {left:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def dollars(value: float | None) -> str:
    """An amount, to three digits.

    >>> dollars(0.00123), dollars(47.0), dollars(None)
    ('0.00123', '47', '')
    """
    return "" if value is None else f"{value:.3g}"


FILTERS: dict[str, Any] = {
    "dollars": dollars,
    "per_cent": lambda value: per_cent(value).replace("-", "−"),
    "signed": signed,
    "p_value": p_value,
    "count": count,
    "duration": duration,
    "visible": visible,
    "finite": lambda value: value is not None and math.isfinite(value),
}
