"""Typed values as sentences: the words are in `sentences.j2`, a line each.

Nothing is computed here. The text is plain: whatever shows it escapes it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from potstill.report import formatting
from potstill.report.results import BASELINE
from potstill.report.summary import Summary, Tone, Trust
from potstill.report.verdict import Verdict
from potstill.stats.comparisons import VERDICT_SEEDS, direction
from potstill.stats.power import Power

if TYPE_CHECKING:
    from jinja2 import Template

Answer = tuple[str, Tone, str, list[str]]  # question, tone, the answer in short, its details


@lru_cache(1)
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    words = Environment(loader=PackageLoader("potstill", "report"), undefined=StrictUndefined)
    names = ("amount", "count", "detail", "dollars", "duration", "level", "listed", "margin")
    more = ("per_cent", "plural", "points", "ranged", "signed", "visible")
    words.filters |= {name: getattr(formatting, name) for name in (*names, *more)}
    words.filters |= {"direction": direction, "oneline": _oneline}
    words.globals |= {"baseline": BASELINE, "verdict_seeds": VERDICT_SEEDS, "inf": math.inf}
    return words.get_template("sentences.j2")


def _oneline(text: str) -> str:
    return " ".join(text.split())


def _lines(name: str, value: Any) -> list[str]:
    text = getattr(_template().module, name)(value)
    return [line.strip() for line in text.splitlines() if line.strip()]


def headline(verdict: Verdict) -> str:
    """The verdict in a sentence."""
    return _lines("headline", verdict)[0]


def reasons(verdict: Verdict) -> list[str]:
    """The numbers behind a verdict."""
    return _lines("reasons", verdict)


def ability(power: Power) -> list[str]:
    """The smallest difference that a study can show, and what shows smaller ones."""
    return _lines("power_lines", power)


def remarks(trust: Trust) -> list[str]:
    """Warnings on similarity scores and on teachers that read hints."""
    return _lines("remarks", trust)


def untested(summary: Summary) -> list[str]:
    """The limits of the study."""
    return _lines("untested", summary.trust)


def answers(summary: Summary) -> list[Answer]:
    """The four questions with their answers, in the order in which a reader has them."""
    which = [f"{pair}: {headline(verdict)}" for pair, verdict in summary.verdicts.items()]
    return [
        ("Which method?", summary.tone, "\n".join(which), []),
        *(
            (question, value.tone, _lines(f"{name}_head", value)[0], _lines(f"{name}_lines", value))
            for question, name, value in (
                ("Can I trust that?", "trust", summary.trust),
                ("What did it cost?", "cost", summary.cost),
                ("Did anything break?", "breakage", summary.breakage),
            )
        ),
    ]


def as_record(summary: Summary) -> dict[str, dict[str, Any]]:
    """The verdicts for results.json: values and sentences."""
    return {
        pair: {
            **verdict.to_json(),
            "head": headline(verdict),
            "lines": reasons(verdict),
            "power": power_record(summary.power[pair]),
        }
        for pair, verdict in summary.verdicts.items()
    }


def power_record(power: Power) -> dict[str, Any]:
    """The same for programs; the smallest difference in [0, 1] or nats, None for none at all."""
    smallest = power.smallest if math.isfinite(power.smallest) else None
    return {"smallest": smallest, "measured": power.measured, "lines": ability(power)}
