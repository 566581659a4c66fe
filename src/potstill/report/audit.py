"""The audit: which fault causes the collapse?

Every method is run clean, with all the published faults, with each one alone, and with all but
one, over pairs and seeds, on the machinery of ordinary studies: one study a variant, resumable,
in `variants/NAME`. Where a fault does not touch a recipe, nothing is run: `alone` is then the
clean variant's number and `without` the full one's. What comes out is a matrix of accuracies and
collapse rates with intervals, and what single faults suffice and are necessary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.faults import FAULTS, PUBLISHED
from potstill.report.stats import Interval, interval, outcome_matrix
from potstill.study.loading import read_study
from potstill.study.schema import Study
from potstill.study.storage import Cell, StudyFolder

COLLAPSED = 0.25  # a run has collapsed below this share of the untrained student's accuracy
COLLAPSED_MOSTLY = 0.5  # of a method's runs, above which the verdict names it
CLEAN, ALL = "clean", "all"

# The settings that the published study trained with, as far as a tiny pair allows; its student
# tokens are trained on the sampled estimate of the reverse KL. `studies/published-*.toml` hold
# the same, and say what differs.
PUBLISHED_TRAIN: dict[str, Any] = {
    "learning_rate": 1e-4,
    "on_policy_rate": 0.5,
    "lora_rank": 32,
    "temperature": 0.7,
    "teacher_temperature": 0.3,
}
SAMPLED = {
    f"{name}_sampled": {"from": name, "student_loss": "reverse_kl_sampled"}
    for name, recipe in METHODS.items()
    if recipe.uses_student
}
# What `potstill audit` runs when it is given no file.
FULL: dict[str, Any] = {
    "name": "audit",
    "methods": [f"{n}_sampled" if r.uses_student else n for n, r in METHODS.items()],
    "seeds": [0, 1, 2, 3, 4],
    "recipe": SAMPLED,
    "train": {**PUBLISHED_TRAIN, "steps": 60},
    "eval": {"problems": 200, "every": 60, "probe_every": 20},
}
QUICK: dict[str, Any] = {
    "name": "audit-quick",
    "pairs": ["tiny-llama"],
    "methods": ["on_policy_gkd", "hybrid", "off_policy"],
    "seeds": [0, 1],
    "train": {"steps": 30},
    "eval": {"problems": 200, "every": 30},
}
QUICK_FAULTS = ("unshifted_targets", "prompt_dropped")


@dataclass(frozen=True)
class Variant:
    """One combination of faults, and the methods that it changes."""

    name: str  # "clean", "all", "only-FAULT" or "without-FAULT"
    faults: tuple[str, ...]
    methods: tuple[str, ...]


def variants(recipes: Mapping[str, Recipe], faults: Sequence[str]) -> list[Variant]:
    """Every variant, `clean` and `all` first.

    Args:
        recipes: the methods to audit.
        faults: those that are taken apart; `all` has every published one on.
    """
    methods = tuple(recipes)
    found = [Variant(CLEAN, (), methods), Variant(ALL, PUBLISHED, methods)]
    for fault in faults:
        touched = tuple(m for m in methods if FAULTS[fault].touches(recipes[m]))
        rest = tuple(name for name in PUBLISHED if name != fault)
        if touched:
            found.append(Variant(f"only-{fault}", (fault,), touched))
            found.append(Variant(f"without-{fault}", rest, touched))
    return found


def study_of(base: Study, variant: Variant) -> Study:
    """The study that runs a variant."""
    table = {**base.to_toml(), "name": variant.name}
    table |= {"faults": list(variant.faults), "methods": list(variant.methods)}
    table["train"] = {**table["train"], "save": False}
    return read_study(table)


@dataclass(frozen=True)
class Entry:
    """One field of the matrix: a method under a variant, on one pair."""

    pair: str
    method: str
    variant: str
    ran_as: str  # the variant that stands for it: another one where the fault touches nothing
    accuracy: Interval | None
    runs: int
    collapsed: int


@dataclass(frozen=True)
class Rate:
    """A share of runs with its exact 95 % (Clopper-Pearson) interval."""

    hits: int
    runs: int

    @property
    def bounds(self) -> tuple[float, float]:
        from scipy.stats import binomtest

        found = binomtest(self.hits, self.runs).proportion_ci(method="exact")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        if not self.runs:
            return "no run"
        low, high = self.bounds
        return f"{self.hits} of {self.runs} runs ({100 * low:.0f} to {100 * high:.0f} %)"


def matrix(base: Study, path: Path, faults: Sequence[str]) -> list[Entry]:
    """Read every variant's results into the matrix; what has not run is missing from it."""
    plan = {variant.name: variant for variant in variants(base.recipes, faults)}
    names = [CLEAN, ALL, *(f"{kind}-{fault}" for fault in faults for kind in ("only", "without"))]
    entries = []
    for name in names:
        for method in base.recipes:
            touched = name in plan and method in plan[name].methods
            ran = name if touched else CLEAN if name.startswith("only-") else ALL
            folder = StudyFolder(path / "variants" / ran)
            for pair in base.models:
                entries.append(_entry(base, folder, pair, method, name, ran))
    return entries


def _entry(base: Study, folder: StudyFolder, pair: str, method: str, name: str, ran: str) -> Entry:
    results = folder.results([Cell(pair, method, seed) for seed in base.seeds]).values()
    done = [record for record in results if record["status"] == "done"]
    exploded = sum(str(record.get("cause")).startswith("not a number") for record in results)
    untrained = (folder.cell(Cell(pair, "untrained")).result or {}).get("accuracy")
    if untrained is None:  # nothing to measure a collapse against
        return Entry(pair, method, name, ran, None, 0, 0)
    accuracy = interval(outcome_matrix(done)) if done else None
    collapsed = sum(record["accuracy"] < COLLAPSED * untrained for record in done)
    return Entry(pair, method, name, ran, accuracy, len(done) + exploded, collapsed + exploded)


def rate(entries: Sequence[Entry], variant: str, methods: Sequence[str] = ()) -> Rate:
    """Collapses of a variant over pairs, seeds and those methods that it was really run for."""
    mine = [
        e
        for e in entries
        if e.variant == variant and (e.method in methods if methods else e.ran_as == variant)
    ]
    return Rate(sum(e.collapsed for e in mine), sum(e.runs for e in mine))


def mostly(entries: Sequence[Entry], variant: str, share: float) -> list[str]:
    """Methods whose runs collapse under a variant in more than a share."""
    found = []
    for method in dict.fromkeys(e.method for e in entries):
        mine = [e for e in entries if e.variant == e.ran_as == variant and e.method == method]
        hits, runs = sum(e.collapsed for e in mine), sum(e.runs for e in mine)
        if runs and hits > share * runs:
            found.append(method)
    return found


@dataclass(frozen=True)
class Verdict:
    """What one fault does, over the methods that it touches."""

    fault: str
    methods: tuple[str, ...]
    clean: Rate
    alone: Rate
    full: Rate
    without: Rate
    p_alone: float  # Fisher's exact test of alone against clean, Holm-corrected over the faults
    p_without: float  # of without against all

    @property
    def suffices(self) -> bool:
        """Alone it collapses more runs than collapse clean."""
        return self.p_alone < 0.05 and self.alone.hits * self.clean.runs > (
            self.clean.hits * self.alone.runs
        )

    @property
    def necessary(self) -> bool:
        """Without it fewer runs collapse than with all."""
        return self.p_without < 0.05 and self.without.hits * self.full.runs < (
            self.full.hits * self.without.runs
        )


def verdicts(entries: Sequence[Entry], faults: Sequence[str]) -> list[Verdict]:
    """Judge each fault by the collapse rates of the runs that it touches."""
    from statsmodels.stats.multitest import multipletests

    drafts = []
    for fault in faults:
        only = f"only-{fault}"
        methods = tuple(dict.fromkeys(e.method for e in entries if e.variant == e.ran_as == only))
        clean, full = rate(entries, CLEAN, methods), rate(entries, ALL, methods)
        alone, without = rate(entries, only), rate(entries, f"without-{fault}")
        if methods and all(r.runs for r in (clean, full, alone, without)):
            p = _fisher(alone, clean), _fisher(without, full)
            drafts.append(Verdict(fault, methods, clean, alone, full, without, *p))
    if not drafts:
        return []
    alone_p = multipletests([d.p_alone for d in drafts], method="holm")[1]
    without_p = multipletests([d.p_without for d in drafts], method="holm")[1]
    return [
        replace(draft, p_alone=float(a), p_without=float(b))
        for draft, a, b in zip(drafts, alone_p, without_p, strict=True)
    ]


def _fisher(a: Rate, b: Rate) -> float:
    from scipy.stats import fisher_exact

    table = [[a.hits, a.runs - a.hits], [b.hits, b.runs - b.hits]]
    return float(fisher_exact(table).pvalue)


def paragraph(base: Study, entries: Sequence[Entry], found: Sequence[Verdict]) -> str:
    """The verdict in words; every number has its interval, and nothing is said beyond them."""
    methods = list(base.recipes)
    text = [
        f"A run has collapsed when it ends below {COLLAPSED:.0%} of the untrained accuracy, or in "
        "numbers that are none.",
        f"Clean, {rate(entries, CLEAN, methods)} collapse; with all published faults on, "
        f"{rate(entries, ALL, methods)}.",
    ]
    for verdict in found:
        if verdict.suffices or verdict.necessary:
            kinds = ["suffices"] * verdict.suffices + ["is necessary"] * verdict.necessary
            text.append(
                f"{verdict.fault} {' and '.join(kinds)}: alone it collapses {verdict.alone}, "
                f"against {verdict.clean} clean; with all faults but it {verdict.without}, against "
                f"{verdict.full} with all."
            )
            if names := mostly(entries, f"only-{verdict.fault}", COLLAPSED_MOSTLY):
                text.append(f"Alone it collapses most runs of {', '.join(names)}.")
    clear = {v.fault for v in found if v.suffices or v.necessary}
    if rest := [v.fault for v in found if v.fault not in clear]:
        text.append(f"For {', '.join(rest)} neither could be shown.")
    text.append(
        "This is about the models and the task that were run. It shows what these mistakes do to a "
        "training loop; it does not measure the published pairs of 4 to 70 billion parameters."
    )
    return " ".join(text)


def summary(base: Study, entries: Sequence[Entry], found: Sequence[Verdict]) -> dict[str, Any]:
    """The audit as plain data, for audit.json."""
    return {
        "study": base.to_toml(),
        "verdict": paragraph(base, entries, found),
        "faults": [
            {
                "fault": v.fault,
                "methods": list(v.methods),
                **{
                    key: {"collapsed": r.hits, "runs": r.runs, "interval": list(r.bounds)}
                    for key, r in (
                        ("clean", v.clean),
                        ("alone", v.alone),
                        ("all", v.full),
                        ("without", v.without),
                    )
                },
                "p_alone": v.p_alone,
                "p_without": v.p_without,
                "suffices": v.suffices,
                "necessary": v.necessary,
            }
            for v in found
        ],
        "matrix": [
            {
                **{key: getattr(e, key) for key in ("pair", "method", "variant", "ran_as")},
                "accuracy": e.accuracy.mean if e.accuracy else None,
                "low": e.accuracy.low if e.accuracy else None,
                "high": e.accuracy.high if e.accuracy else None,
                "runs": e.runs,
                "collapsed": e.collapsed,
            }
            for e in entries
        ],
    }
