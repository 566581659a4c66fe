"""The monitor of a run: does each step train what the recipe specifies, and how does the student
behave?

All measurements use the bare engine, so that faults and wrappers cannot distort them. Checks: at
step 1 and at every probe, the loss of the coming step is computed from the specification of the run
and compared with the loss that the step reports. If they differ, the known mistakes are tried at
the next step until one gives the reported loss. Behaviour: signals of the `probe`. The monitor
changes nothing in the run. Interpreting the measurements is left to `diagnosis`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from potstill.algorithms.losses import TruncatedReverseKL
from potstill.diagnostics import diagnosis
from potstill.diagnostics.faults.explaining import Mistakes, as_if, candidates
from potstill.diagnostics.probe import Probe, mean, repetition
from potstill.diagnostics.sampler import SAMPLER_GAP, sampler_gap
from potstill.engines.protocol import Engine
from potstill.problems import Problem
from potstill.settings import Eval, Train
from potstill.tasks.overlap import overlap
from potstill.training import objective
from potstill.training.evaluation import TeacherCompletions
from potstill.training.rollout import draw
from potstill.training.run import RunSpec
from potstill.types import Finding, StepStats, Trajectory

# Between two passes over one batch: relative, and for losses below 0.1 nats a tenth of it absolute.
STEP_TOLERANCE = 1e-3
SLACK = 0.1  # the same if the step made another optimizer step in between
KEPT = (4, 8, 16, 20, 32, 50, 64, 100)  # numbers of ids tried to explain a truncated loss


@dataclass
class Monitor:
    """Observes one run; `partial(Monitor, spec, settings, evaluation)` is a `MonitorFactory`.

    Args:
        spec: the run without faults: recipe, task and seed.
        settings: batch and limits.
        evaluation: size and interval of the probe.
        engine: the engine without faults.
        teacher: the teacher's greedy completions of the probe.
    """

    spec: RunSpec
    settings: Train
    evaluation: Eval
    engine: Engine
    teacher: TeacherCompletions
    rows: list[dict[str, Any]] = field(default_factory=list)  # metrics so far
    findings: list[Finding] = field(default_factory=list)
    causes: dict[str, str] = field(default_factory=dict)  # quantity that differs -> its cause
    _suspects: set[str] = field(default_factory=set)  # quantities that differ, cause unknown so far
    _expected: StepStats | None = None  # the correct report of the coming step
    _mistaken: dict[str, StepStats] = field(default_factory=dict)  # mistake -> its report
    _checked: dict[str, Any] = field(default_factory=dict)  # metrics of the checks before the step

    def __post_init__(self) -> None:
        task = self.spec.task
        problems = task.train[: self.evaluation.probe]
        limit, seed = self.settings.max_tokens, self.spec.seed
        self.probe = Probe(self.engine, task, problems, limit, seed, self.teacher)

    @property
    def collapsed(self) -> bool:
        """True once the student has lost its skill."""
        return any(finding.kind == "collapse" for finding in self.findings)

    @property
    def healthy_until(self) -> int:
        """The last step at which a probe showed no symptom."""
        return diagnosis.healthy_until(self.rows)

    def recall(self, rows: Sequence[dict[str, Any]]) -> None:
        """Continue from the recorded rows of an interrupted run."""
        self.rows = list(rows)
        self.findings = diagnosis.diagnose(self.rows)
        self._suspects = set(rows[-1].get("suspects", ())) if rows else set()
        for row in rows:
            for check in row.get("checks", ()):
                if check["cause"]:
                    self.causes[check["what"]] = check["cause"]

    def start(self, evaluated: Sequence[Problem]) -> dict[str, Any]:
        """Signals of the untrained student, and the overlap of training and evaluation.

        Args:
            evaluated: the problems that the run evaluates.
        """
        shared = len(overlap(self.spec.task.train, evaluated))
        checks = []
        if shared:
            checks = [_check("graded problems trained on", shared, 0, "eval_on_train")]
        row = {"step": 0, "tokens": 0, "checks": checks, **self.probe.measure()}
        self.rows = [row | self.probe.compare_with_teacher()]
        self.findings = diagnosis.diagnose(self.rows)
        return self.rows[0]

    def before(self, step: int, fresh: Sequence[Trajectory], batch: Sequence[Trajectory]) -> None:
        """Compute the correct report of the coming step, with the weights before it."""
        self._expected, self._mistaken, self._checked = None, {}, {}
        if not (self.probes(step) or step == 1 or self._suspects):
            return
        self._expected = self._report(batch)
        if self._suspects:
            self._mistaken = self._reports_with_mistakes(batch)
        drawn = [p.id for p in draw(self.spec.task.train, len(fresh), self.spec.seed, step - 1)]
        checks = []
        if sorted(drawn) != sorted(t.problem for t in fresh):
            checks.append(_check("problems that the seed draws", 0, len(drawn), "seeds_ignored"))
        gap = self._sampler_gap([t for t in fresh if t.source == "student" and t.trained])
        if gap > SAMPLER_GAP:
            checks.append(_check("sampler's distance from the student", gap, 0, "stale_sampler"))
        self._checked = {"checks": checks, "check/sampler": gap}

    def after(
        self,
        metrics: Mapping[str, Any],
        stats: StepStats,
        fresh: Sequence[Trajectory],
        *,
        last: bool,
    ) -> dict[str, Any]:
        """Compare the report of a step with the correct one, and probe the student if it is due.

        Args:
            metrics: the step's metrics so far.
            stats: the engine's report of the step.
            fresh: the trajectories sampled for it.
            last: true at the run's last step.
        """
        row = dict(self._checked) | self._rollout_signals(fresh)
        if self._expected is not None:
            row |= self._compare(stats, self._expected)
        if last or self.probes(metrics["step"]):
            row |= self.probe.measure()
        self.rows.append({**metrics, **row})
        if last or self._expected is not None:  # after every step it would slow long runs down
            self.findings = diagnosis.diagnose(self.rows, finished=last)
        return row

    def probes(self, step: int) -> bool:
        """True if the student is probed after this step."""
        return step % self.evaluation.probe_every == 0

    def _compare(self, stats: StepStats, expected: StepStats) -> dict[str, Any]:
        """All checks of a step: those before it and each difference of its report, with causes."""
        checks = list(self._checked["checks"])
        suspects: set[str] = set()
        for quantity, trained, correct in _differences(stats, expected):
            cause = self.causes.get(quantity) or self._cause(quantity, trained, stats, expected)
            checks.append(_check(quantity, trained, correct, cause))
            if cause:
                self.causes[quantity] = cause
            elif not self._mistaken:
                suspects.add(quantity)
        self._suspects = suspects
        return {"checks": checks, "suspects": sorted(suspects)}

    def _rollout_signals(self, fresh: Sequence[Trajectory]) -> dict[str, float | None]:
        """Signals of the student's completions that were sampled for a step."""
        student = [t for t in fresh if t.source == "student"]
        completions = [t.completion[t.prefix :] for t in student if t.trained]
        if not completions:
            return {}
        truncated = [completion[-1] not in self.engine.eos for completion in completions]
        return {
            "train/truncated": float(np.mean(truncated)),
            "train/repetition": float(np.mean([repetition(c) for c in completions])),
            "train/surprise": mean([-t.logprobs[t.prefix :] for t in student]),
        }

    def _report(self, batch: Sequence[Trajectory], mistakes: Mistakes = ()) -> StepStats:
        """The report of a step on this batch, with the mistakes or without any."""
        data = as_if(mistakes, self.spec.recipe, batch, self.engine)
        return self.engine.measure(data, dropout=True)

    def _reports_with_mistakes(self, batch: Sequence[Trajectory]) -> dict[str, StepStats]:
        """The report of a step on this batch for each known mistake."""
        reports = {
            name: self._report(batch, mistakes)
            for name, mistakes in candidates(self.engine.losses).items()
        }
        truncated = "truncated_reverse_kl" in self.engine.losses
        if truncated and self.spec.recipe.student_loss.name == "reverse_kl":
            for kept in KEPT:
                loss = TruncatedReverseKL(kept)
                recipe = dataclasses.replace(self.spec.recipe, student_loss=loss)
                data = objective.build(recipe, batch, self.engine)
                reports[f"top_k_without_tail:{kept}"] = self.engine.measure(data, dropout=True)
        return reports

    def _cause(
        self, quantity: str, trained: float | None, stats: StepStats, expected: StepStats
    ) -> str:
        """The known mistake that explains a difference, or ""."""
        if quantity == "anchor" and trained is None:
            return "anchor_absent"
        unblended = _unblended(stats, expected)
        if quantity == "loss":
            return "mixture_unblended" if unblended else ""
        tolerance = SLACK if unblended else STEP_TOLERANCE
        for name, report in self._mistaken.items():
            if _close(trained, report.losses.get(quantity), tolerance):
                return name.split(":")[0]
        return ""

    def _sampler_gap(self, trajectories: Sequence[Trajectory]) -> float:
        if not trajectories:
            return 0.0
        readings = [(t.prompt, t.completion) for t in trajectories]
        sampled = [t.logprobs for t in trajectories]
        prefixes = [t.prefix for t in trajectories]
        return sampler_gap(self.engine, "student", readings, sampled, prefixes)


def _check(
    quantity: str, trained: float | None, expected: float | None, cause: str
) -> dict[str, Any]:
    return {"what": quantity, "trained": trained, "expected": expected, "cause": cause}


def _differences(
    stats: StepStats, expected: StepStats
) -> list[tuple[str, float | None, float | None]]:
    """Parts of the loss that differ from the correct report; if none does, their sum if it does."""
    tolerance = SLACK if _unblended(stats, expected) else STEP_TOLERANCE
    parts = [
        (part, stats.losses.get(part), expected.losses.get(part))
        for part in dict.fromkeys([*expected.losses, *stats.losses])
    ]
    differing = [part for part in parts if not _close(part[1], part[2], tolerance)]
    if _unblended(stats, expected) or not (differing or _close(stats.loss, expected.loss)):
        differing.append(("loss", stats.loss, expected.loss))
    return differing


def _unblended(stats: StepStats, expected: StepStats) -> bool:
    """True if the step added up the two sources at full weight."""
    if not {"student", "teacher"} <= stats.losses.keys():
        return False
    whole = sum(stats.losses[source] for source in ("student", "teacher"))
    return _close(stats.loss, whole, SLACK) and not _close(stats.loss, expected.loss, SLACK)


def _close(a: float | None, b: float | None, tolerance: float = STEP_TOLERANCE) -> bool:
    if a is None or b is None:
        return a is b
    return abs(a - b) <= tolerance * max(0.1, abs(b))
