"""One file for a page: its style, its scripts, Vega packed small, and the content security policy.

Vega is a third of its size as gzip in base64; the page unpacks it when the browser is idle or a
chart comes into view, so that words and tables are there first. The policy lists scripts by their
hashes, the unpacked one too, and allows no request: model text can never run.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from potstill.report import formatting
from potstill.report.results import BASELINE
from potstill.study.storage import REFERENCES

SCRIPTS = ("tables.js", "charts.js", "page.js")
FILTERS = ("count", "duration", "per_cent", "plural", "visible")


def render(template: str, *, scripts: bool = True, **fields: Any) -> str:
    """A page from a template of this package, with style, scripts and policy."""
    environment = Environment(
        loader=PackageLoader("potstill", "report/pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(formatting, name) for name in FILTERS}
    environment.filters["json"] = data_block
    environment.globals |= {"references": REFERENCES, "baseline": BASELINE}
    own = [_plain(asset(name)) for name in SCRIPTS] if scripts else []
    library, packed = _vega() if scripts else ("", "")
    environment.globals |= {  # globals: the macros of parts.html.j2 see them too
        "policy": policy([*own, library] if scripts else []),
        "style": Markup(asset("page.css")),
        "scripts": [Markup(text) for text in own],
        "vega": packed,
    }
    return environment.get_template(template).render(**fields)


@lru_cache(1)
def _vega() -> tuple[str, str]:
    """Vega, Vega-Lite and Vega-Embed as a browser hashes them, and packed: gzip in base64."""
    from vl_convert import javascript_bundle

    text = _plain(javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    packed = gzip.compress(text.encode(), compresslevel=9, mtime=0)
    return text, base64.b64encode(packed).decode()


def asset(name: str) -> str:
    """A file of this package."""
    return (files("potstill.report.pages") / name).read_text(encoding="utf-8")


def _plain(script: str) -> str:
    """A script as a browser hashes it, and without an end tag inside."""
    assert "</script" not in script.lower()
    return script.replace("\r\n", "\n").replace("\r", "\n")


def policy(scripts: Sequence[str]) -> str:
    """The content security policy under which these scripts alone run."""
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def data_block(value: Any) -> Markup:
    """JSON for a script element: no `<` can end it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c"))
