"""Which method, in words that never say more than the numbers.

A choice is made from the method table and from paired differences of the highest mean to every
other method. What is not clearly apart is a tie and is called one; a collapsed method, a study
with faults on, and a gain that is not clear are never recommended. It explains no difference, and
knows nothing of other tasks or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from potstill.report.numbers import count, p_value, per_cent, signed
from potstill.report.reading import FEW_SEEDS, clear
from potstill.report.stats import BASELINE, Difference, Interval, Row

MORE = 1.25  # times the baseline's tokens, from which on it is said

Kind = Literal["nothing", "faults", "no gain", "single", "clear", "gain", "tie"]


@dataclass(frozen=True)
class Evidence:
    """What a choice on one pair rests on."""

    rows: Sequence[Row]  # of the methods, without the reference rows
    apart: Mapping[str, Difference | None]  # highest mean minus each other method, Holm-corrected
    collapsed: Mapping[str, str] = field(default_factory=dict)  # method -> what was found
    faults: Sequence[str] = ()
    price: Mapping[str, float] = field(default_factory=dict)  # method -> USD a run; empty: unpriced
    missing: int = 0  # cells of the pair without a result


@dataclass(frozen=True)
class Choice:
    """What to use on one pair, and what speaks for it."""

    kind: Kind
    head: str
    lines: tuple[str, ...]
    methods: tuple[str, ...] = ()  # recommended: one, or those that tie


def best(rows: Sequence[Row], collapsed: Mapping[str, str]) -> Row | None:
    """The row to start from: the highest mean of those that did not collapse, and of those that
    are clearly above the untrained student, where there are such."""
    fit = [row for row in rows if row.accuracy and row.method not in collapsed]
    sure = [row for row in fit if not row.against_untrained or clear(row.against_untrained) > 0]
    return max(sure or fit, key=lambda row: row.accuracy.mean if row.accuracy else 0, default=None)


def choose(told: Evidence) -> Choice:
    """The choice, its headline and its reasons."""
    top = best(told.rows, told.collapsed)
    broken = _broken(told)
    if top is None:
        graded = any(row.accuracy for row in told.rows)
        head = "None: every method collapsed." if graded else "No method has a result yet."
        return Choice("nothing", head, tuple(broken))
    tied = [top, *_tied(told, top)]
    reasons = [_level(told, top), *_spread(told, top, tied), *_baseline(told, top), *broken]
    lines = tuple(reasons)
    if told.faults:
        head = f"None: faults are switched on ({', '.join(told.faults)})."
        return Choice("faults", head, lines)
    if top.against_untrained and clear(top.against_untrained) < 1:
        return Choice("no gain", "None: no method is clearly better than no training.", lines)
    names = tuple(row.method for row in tied)
    others = [r for r in told.rows if r.accuracy and r.method not in told.collapsed and r != top]
    if not others:
        told_of = "has" if len(told.rows) > 1 else "is in this study, and it has"
        return Choice("single", f"{top.method}: no other {told_of} a result.", lines, names)
    near = [row.method for row in others if clear(told.apart.get(row.method)) < 1]
    if len(tied) == 1 and near:
        among = _listed(near) if len(near) < 4 else f"{len(near)} others"
        rivals = any(clear(row.against_untrained) > 0 for row in others)
        gain = "clearly above every other clear gain" if rivals else "the one clear gain"
        head = f"{top.method}: {gain} on no training, not clearly above {among}"
        return Choice("gain", f"{head}{_hedge(told)}.", lines, names)
    if len(tied) == 1:
        head = f"{top.method}: clearly above every other method{_hedge(told)}."
        return Choice("clear", head, lines, names)
    of = f"all {len(tied)}" if len(tied) == len(others) + 1 else f"{len(tied)}"
    least = _ends(told, tied)[:1]
    listed = f"{top.method} has the highest mean"
    listed += "".join(f", {name} spends least" for name in least if name != top.method)
    listed += " and spends least" * (top.method in least)
    return Choice("tie", f"A tie of {of} methods: {listed}{_hedge(told)}.", lines, names)


def _hedge(told: Evidence) -> str:
    """What makes a headline provisional, in a few words."""
    seeds = max(len(row.seeds) for row in told.rows)
    parts = [f"{seeds} {'seed' if seeds == 1 else 'seeds'} only"] * (seeds < FEW_SEEDS)
    parts += ["not finished"] * (told.missing > 0)
    return f" ({', '.join(parts)})" if parts else ""


def _tied(told: Evidence, top: Row) -> list[Row]:
    """Methods that the best is not clearly above, themselves clearly above no training."""
    return [
        row
        for row in told.rows
        if row.accuracy
        and row.method != top.method
        and row.method not in told.collapsed
        and clear(told.apart.get(row.method)) < 1
        and (row.against_untrained is None or clear(row.against_untrained) > 0)
    ]


def _level(told: Evidence, top: Row) -> str:
    assert top.accuracy
    gain, mean = top.against_untrained, top.accuracy.mean
    higher = any(
        row.accuracy and row.accuracy.mean > mean and row.method not in told.collapsed
        for row in told.rows
    )
    of = " of the clear gains" if higher else ""
    words = f"Highest mean{of}: {top.method}, {per_cent(top.accuracy.mean)} %{_range(top.accuracy)}"
    if gain is None:
        return f"{words}. The untrained student has no result: whether this is a gain is unknown."
    return f"{words}, {difference(gain)} on the untrained student."


def _range(value: Interval) -> str:
    low, high = per_cent(value.low), per_cent(value.high)
    return f" ({low} to {high})" if low and high else ""


def difference(value: Difference) -> str:
    """A difference with its interval, in points.

    >>> difference(Difference(0.025, 0.001, 0.049, 0.03))
    '+2.5 points (+0.1 to +4.9, p 0.030)'
    """
    told = f"{signed(value.mean)} points"
    ends = [signed(v) for v in (value.low, value.high) if per_cent(v)]
    p = p_value(value.p)
    inside = [f"{ends[0]} to {ends[1]}"] if len(ends) == 2 else []
    inside += [f"p {p}"] * bool(p)
    return f"{told} ({', '.join(inside)})" if inside else told


def _spread(told: Evidence, top: Row, tied: Sequence[Row]) -> list[str]:
    """Who ties with the best and which of them is cheapest; who is clearly below."""
    known = {m: d for m, d in told.apart.items() if d is not None}
    found, names = [], [row.method for row in tied]
    if len(tied) > 1:
        found.append(f"Not clearly below it: {_listed(names[1:])}.")
        found += _cheapest(told, tied)
    weak = [
        m for m in told.apart if clear(told.apart[m]) < 1 and m not in (*names, *told.collapsed)
    ]
    if weak:
        found.append(f"Not clearly below it, and no clear gain on no training: {_listed(weak)}.")
    below = [m for m, d in known.items() if clear(d) > 0]
    if below:
        nearest = min(below, key=lambda m: known[m].mean)
        others = f"; the nearest is {nearest}: {top.method} has {difference(known[nearest])} on it"
        found.append(f"Clearly below it: {_listed(below)}{others}.")
    return found


def _price(told: Evidence, tied: Sequence[Row]) -> dict[str, float]:
    """What a run costs: dollars, or tokens where no price is set."""
    price = told.price or {row.method: row.tokens for row in tied if row.tokens is not None}
    return {row.method: price[row.method] for row in tied if row.method in price}


def _ends(told: Evidence, tied: Sequence[Row]) -> list[str]:
    """The cheapest and the dearest, where all have a cost and not all the same."""
    costs = _price(told, tied)
    if len(costs) < len(tied) or min(costs.values()) == max(costs.values()):
        return []
    return [min(costs, key=lambda m: costs[m]), max(costs, key=lambda m: costs[m])]


def _cheapest(told: Evidence, tied: Sequence[Row]) -> list[str]:
    """The tie's cheapest, in a sentence."""
    costs, ends = _price(told, tied), _ends(told, tied)
    words = {
        m: f"{c:.3g} USD a run" if told.price else f"{count(c)} tokens a run"
        for m, c in costs.items()
    }
    told_of = [f"{method}, {words[method]}" for method in ends]
    return [f"Of these the cheapest is {told_of[0]}; the dearest {told_of[1]}."] if ends else []


def _baseline(told: Evidence, top: Row) -> list[str]:
    """How methods stand to the baseline, where it is in the study."""
    if not any(row.against_baseline for row in told.rows):
        return []
    found = []
    if top.against_baseline:
        sure = "" if clear(top.against_baseline) else ": not significant"
        found = [f"{top.method} against {BASELINE}: {difference(top.against_baseline)}{sure}."]
        found += _equal_tokens(told, top)
    sides = {
        side: [row.method for row in told.rows if clear(row.against_baseline) == side]
        for side in (1, -1)
    }
    if not any(sides.values()):
        return [*found, f"No method is clearly apart from {BASELINE}."]
    parts = [f"above it {_listed(sides[1])}"] * bool(sides[1])
    parts += [f"below it {_listed(sides[-1])}"] * bool(sides[-1])
    return [*found, f"Clearly apart from {BASELINE}: {'; '.join(parts)}."]


def _equal_tokens(told: Evidence, top: Row) -> list[str]:
    """What is left of the best when it may spend only what the baseline does."""
    base = next((row for row in told.rows if row.method == BASELINE), None)
    if not base or not base.accuracy or not base.tokens or not top.tokens:
        return []
    ratio, level = top.tokens / base.tokens, per_cent(top.equal_tokens)
    if ratio < MORE or not level:
        return []
    return [
        f"It spends {ratio:.1f} times the tokens of {BASELINE}; where it had spent as many, it was "
        f"at {level} %, {BASELINE} ends at {per_cent(base.accuracy.mean)} %."
    ]


def _broken(told: Evidence) -> list[str]:
    """Collapsed, worse than no training, or without a result."""
    found = [f"Collapsed: {method}, {what}." for method, what in told.collapsed.items()]
    worse = [row.method for row in told.rows if clear(row.against_untrained) < 0]
    found += [f"Clearly below the untrained student: {_listed(worse)}."] * bool(worse)
    empty = [row for row in told.rows if not row.accuracy]
    failed = [row.method for row in empty if row.failed]
    absent = [row.method for row in empty if not row.failed]
    found += [f"Failed in every run: {_listed(failed)}."] * bool(failed)
    found += [f"Not run yet: {_listed(absent)}."] * bool(absent)
    return found


def _listed(names: Sequence[str]) -> str:
    """
    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), *names[-1:]] if len(names) > 1 else names)
