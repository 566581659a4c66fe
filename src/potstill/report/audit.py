"""The audit of the published study: which fault causes the collapse?

Every method is run clean, with all the published faults, with each one alone, and with all but
one, over pairs and seeds, as ordinary studies: one study a variant, resumable, in `variants/NAME`.
Where a fault does not touch a recipe, nothing is run: `alone` is then the clean variant's number
and `without` the full one's. The result is a matrix of accuracies and collapse rates with
intervals, and the faults that suffice or are necessary. Pages are written by `pages.audit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.faults import FAULTS, PUBLISHED
from potstill.errors import PotstillError
from potstill.report.results import family
from potstill.stats.comparisons import Interval
from potstill.stats.multiple import holm
from potstill.study.loading import read_study
from potstill.study.schema import Study
from potstill.study.storage import RunId, StudyFolder
from potstill.tasks import is_graded, load_task

COLLAPSED = 0.25  # a run has collapsed below this share of the untrained student's accuracy
COLLAPSED_MOSTLY = 0.5  # of a method's runs, above which the verdict names the method
CLEAN, ALL = "clean", "all"

# The settings that the published study trained with, as far as a tiny pair allows; its student
# tokens are trained on the sampled estimate of the reverse KL. `studies/published-*.toml` have the
# same, and list the differences.
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
# The study of `potstill audit` without a file.
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
        faults: those to try alone and to leave out; `all` has every published one on.
    """
    methods = tuple(recipes)
    plan = [Variant(CLEAN, (), methods), Variant(ALL, PUBLISHED, methods)]
    for fault in faults:
        touched = tuple(m for m in methods if FAULTS[fault].touches(recipes[m]))
        rest = tuple(name for name in PUBLISHED if name != fault)
        if touched:
            plan.append(Variant(f"only-{fault}", (fault,), touched))
            plan.append(Variant(f"without-{fault}", rest, touched))
    return plan


def check_audit(base: Study) -> None:
    """Raise `PotstillError` for a study that an audit cannot measure a collapse of."""
    if not is_graded(load_task(**base.task)):
        raise PotstillError(
            "an audit counts the runs whose accuracy collapses, and the task "
            f'"{base.task.get("name")}" has no grader',
            "name a grader in [task] (grade = ...)",
        )


def study_of(base: Study, variant: Variant) -> Study:
    """The study that runs a variant."""
    table = {**base.to_toml(), "name": variant.name}
    table |= {"faults": list(variant.faults), "methods": list(variant.methods)}
    table["train"] = {**table["train"], "save": False}
    return read_study(table)


@dataclass(frozen=True)
class VariantResult:
    """One field of the matrix: a method under a variant, on one pair."""

    pair: str
    method: str
    variant: str
    ran_as: str  # the variant that was run for it: another one where the fault touches nothing
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

        exact = binomtest(self.hits, self.runs).proportion_ci(method="exact")
        return float(exact.low), float(exact.high)

    def __str__(self) -> str:
        if not self.runs:
            return "no run"
        low, high = self.bounds
        return f"{self.hits} of {self.runs} runs ({100 * low:.0f} to {100 * high:.0f} %)"


def matrix(base: Study, path: Path, faults: Sequence[str]) -> list[VariantResult]:
    """Read every variant's results into the matrix."""
    plan = {variant.name: variant for variant in variants(base.recipes, faults)}
    names = [CLEAN, ALL, *(f"{kind}-{fault}" for fault in faults for kind in ("only", "without"))]
    levels = {(pair, ran): _levels(base, path, pair, ran) for pair in base.models for ran in plan}
    entries = []
    for name in names:
        for method in base.recipes:
            touched = name in plan and method in plan[name].methods
            ran = name if touched else CLEAN if name.startswith("only-") else ALL
            folder = StudyFolder(path / "variants" / ran)
            for pair in base.models:
                level = levels[pair, ran].get(method)
                entries.append(_entry(base, folder, level, pair, method, name, ran))
    return entries


def _levels(base: Study, path: Path, pair: str, variant: str) -> dict[str, Interval]:
    """The accuracy of each method of a variant on a pair."""
    folder = StudyFolder(path / "variants" / variant)
    done = {
        method: {
            run.seed: record
            for run, record in folder.results(
                [RunId(pair, method, seed) for seed in base.seeds]
            ).items()
            if record["status"] == "done"
        }
        for method in base.recipes
    }
    known = family(done)
    return {method: known.interval(method) for method in known.samples}


def _entry(
    base: Study,
    folder: StudyFolder,
    accuracy: Interval | None,
    pair: str,
    method: str,
    name: str,
    ran: str,
) -> VariantResult:
    results = folder.results([RunId(pair, method, seed) for seed in base.seeds]).values()
    done = [record for record in results if record["status"] == "done"]
    exploded = sum(str(record.get("cause")).startswith("not a number") for record in results)
    untrained = (folder.cell(RunId(pair, "untrained")).result or {}).get("accuracy")
    if untrained is None:  # nothing to measure a collapse against
        return VariantResult(pair, method, name, ran, None, 0, 0)
    collapsed = sum(record["accuracy"] < COLLAPSED * untrained for record in done)
    return VariantResult(
        pair, method, name, ran, accuracy, len(done) + exploded, collapsed + exploded
    )


def rate(entries: Sequence[VariantResult], variant: str, methods: Sequence[str] = ()) -> Rate:
    """Collapses of a variant over pairs, seeds and the methods that it was run for."""
    counted = [
        e
        for e in entries
        if e.variant == variant and (e.method in methods if methods else e.ran_as == variant)
    ]
    return Rate(sum(e.collapsed for e in counted), sum(e.runs for e in counted))


def mostly(entries: Sequence[VariantResult], variant: str, share: float) -> list[str]:
    """Methods whose runs collapse under a variant in more than a share."""
    methods = []
    for method in dict.fromkeys(e.method for e in entries):
        own = [e for e in entries if e.variant == e.ran_as == variant and e.method == method]
        hits, runs = sum(e.collapsed for e in own), sum(e.runs for e in own)
        if runs and hits > share * runs:
            methods.append(method)
    return methods


@dataclass(frozen=True)
class FaultEffect:
    """The effect of one fault on the methods that it touches."""

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
        """True where more runs collapse with this fault alone than clean."""
        return self.p_alone < 0.05 and self.alone.hits * self.clean.runs > (
            self.clean.hits * self.alone.runs
        )

    @property
    def necessary(self) -> bool:
        """True where fewer runs collapse with all other faults than with all."""
        return self.p_without < 0.05 and self.without.hits * self.full.runs < (
            self.full.hits * self.without.runs
        )


def effects(entries: Sequence[VariantResult], faults: Sequence[str]) -> list[FaultEffect]:
    """The effect of each fault on the collapse rates of the runs that it touches."""
    drafts = []
    for fault in faults:
        only = f"only-{fault}"
        methods = tuple(dict.fromkeys(e.method for e in entries if e.variant == e.ran_as == only))
        clean, full = rate(entries, CLEAN, methods), rate(entries, ALL, methods)
        alone, without = rate(entries, only), rate(entries, f"without-{fault}")
        if methods and all(r.runs for r in (clean, full, alone, without)):
            p = _fisher(alone, clean), _fisher(without, full)
            drafts.append(FaultEffect(fault, methods, clean, alone, full, without, *p))
    if not drafts:
        return []
    alone_p, without_p = holm([d.p_alone for d in drafts]), holm([d.p_without for d in drafts])
    return [
        replace(draft, p_alone=a, p_without=b)
        for draft, a, b in zip(drafts, alone_p, without_p, strict=True)
    ]


def _fisher(a: Rate, b: Rate) -> float:
    from scipy.stats import fisher_exact

    table = [[a.hits, a.runs - a.hits], [b.hits, b.runs - b.hits]]
    return float(fisher_exact(table).pvalue)


def paragraph(
    base: Study, entries: Sequence[VariantResult], measured: Sequence[FaultEffect]
) -> str:
    """The verdict in words; every number has its interval."""
    methods = list(base.recipes)
    text = [
        f"A run has collapsed when it ends below {COLLAPSED:.0%} of the untrained accuracy, or "
        "with a non-finite loss.",
        f"Clean, {rate(entries, CLEAN, methods)} collapse; with all published faults on, "
        f"{rate(entries, ALL, methods)}.",
    ]
    for effect in measured:
        if effect.suffices or effect.necessary:
            kinds = ["suffices"] * effect.suffices + ["is necessary"] * effect.necessary
            text.append(
                f"{effect.fault} {' and '.join(kinds)}: alone it collapses {effect.alone}, "
                f"against {effect.clean} clean; with all other faults on {effect.without} "
                f"collapse, against {effect.full} with all."
            )
            if names := mostly(entries, f"only-{effect.fault}", COLLAPSED_MOSTLY):
                text.append(f"Alone it collapses most runs of {', '.join(names)}.")
    if rest := [e.fault for e in measured if not (e.suffices or e.necessary)]:
        text.append(f"For {', '.join(rest)} neither could be shown.")
    text.append(
        "This holds for the models and the task that were run. It shows the effect of these "
        "mistakes on a training loop; it does not measure the published pairs of 4 to 70 billion "
        "parameters."
    )
    return " ".join(text)


def summary(
    base: Study, entries: Sequence[VariantResult], measured: Sequence[FaultEffect]
) -> dict[str, Any]:
    """The contents of audit.json."""
    return {
        "study": base.to_toml(),
        "verdict": paragraph(base, entries, measured),
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
            for v in measured
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
