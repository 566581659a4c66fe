"""What makes a page one file: its style, its scripts, plotly packed small, and the policy that
lets no other script run and no request leave.

plotly.js is a third of its size as gzip in base64; the page unpacks it when the browser is idle or
a chart comes into view, so that words and tables are there first. The policy knows scripts by
their hashes, unpacked ones too: what a model wrote can never run.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

SCRIPTS = ("tables.js", "charts.js", "page.js")


def render(template: str, filters: Mapping[str, Any], **fields: Any) -> str:
    """A page from a template of this package; `style`, `scripts`, `plotly`, `policy` are added."""
    environment = Environment(
        loader=PackageLoader("potstill", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    scripts = [_plain(asset(name)) for name in SCRIPTS]
    library, packed = _plotly()
    return environment.get_template(template).render(
        policy=policy([*scripts, library]),
        style=Markup(asset("page.css")),
        scripts=[Markup(text) for text in scripts],
        plotly=packed,
        **fields,
    )


@lru_cache(1)
def _plotly() -> tuple[str, str]:
    """plotly.js as a browser hashes it, and the same packed: gzip in base64."""
    from plotly.offline import get_plotlyjs

    text = _plain(get_plotlyjs())
    packed = gzip.compress(text.encode(), compresslevel=9, mtime=0)
    return text, base64.b64encode(packed).decode()


def asset(name: str) -> str:
    """A file of this package."""
    return (files("potstill.report") / name).read_text(encoding="utf-8")


def _plain(script: str) -> str:
    """A script as a browser hashes it, and without an end tag inside."""
    assert "</script" not in script.lower()
    return script.replace("\r\n", "\n").replace("\r", "\n")


def policy(scripts: Sequence[str]) -> str:
    """The content security policy under which these scripts alone run."""
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def data_block(value: Any) -> Markup:
    """JSON for a script element: no `<` can end it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c"))
