"""What is watched while a run trains: does a step train what was asked, and how does the student
behave?

Two kinds of signals, both taken with the bare engine, so that nothing that counts or spoils a
run can colour them. Checks: at step 1 and at every probe the loss of the step about to be made
is worked out from the recipe as it was asked for, and compared with what the step then reports;
where they differ, known mistakes are tried in the next step until one gives the reported number.
Behaviour: a few fixed training problems, answered at temperature 1 with the same random numbers
each time, and the teacher's own answers to them. Nothing here changes a run, and nothing here
judges one: that is `diagnosis`'s business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from potstill.diagnostics import diagnosis
from potstill.diagnostics.faults.explaining import Mistakes, as_if, candidates
from potstill.engines.protocol import Engine
from potstill.settings import Eval, Train
from potstill.training import objective
from potstill.training.evaluation import TeacherCompletions
from potstill.training.rollout import draw, generator
from potstill.training.run import RunSpec
from potstill.types import (
    Finding,
    Floats,
    Ids,
    Loss,
    Prompt,
    Reading,
    Sample,
    StepStats,
    Trajectory,
)

TOLERANCE = 1e-3  # relative and in tenths of it absolute: two passes over the same batch
SLACK = 0.1  # the same, where an extra optimizer step lies between the two
SAMPLER_GAP = 0.02  # mean nats between a sampler and a scorer of the same weights
KEPT = (4, 8, 16, 20, 32, 50, 64, 100)  # sizes of a truncated row that are tried


@dataclass
class Monitor:
    """Watches one run.

    `partial(Monitor, asked, settings, grading)` is what `training.loop.train` takes.

    Args:
        asked: the run as it was asked for: recipe, task and seed.
        settings: batch and limits.
        grading: how often to look.
        engine: bare.
        reference: the teacher's greedy texts of the probed problems.
    """

    asked: RunSpec
    settings: Train
    grading: Eval
    engine: Engine
    reference: TeacherCompletions
    rows: list[dict[str, Any]] = field(default_factory=list)  # of the run so far
    findings: list[Finding] = field(default_factory=list)  # what is wrong with it
    named: dict[str, str] = field(default_factory=dict)  # what differs -> the mistake it fits
    _suspects: set[str] = field(default_factory=set)  # what differs and has no name yet
    _expected: StepStats | None = None
    _rivals: dict[str, StepStats] = field(default_factory=dict)
    _row: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.problems = self.asked.task.train[: self.grading.probe]
        prompts = [self.engine.prompt(problem) for problem in self.problems]
        limits = [self.settings.max_tokens] * len(prompts)
        rng = np.random.default_rng(0)
        texts = self.engine.sample("teacher", prompts, limits, 0.0, rng)
        self.model_answers = _rows(prompts, texts)

    @property
    def collapsed(self) -> bool:
        """Whether the student has lost its skill."""
        return any(finding.kind == "collapse" for finding in self.findings)

    @property
    def healthy_until(self) -> int:
        """The last step that is surely good."""
        return diagnosis.healthy_until(self.rows)

    def recall(self, rows: Sequence[dict[str, Any]]) -> None:
        """Take up what an interrupted run had found out."""
        self.rows = list(rows)
        self.findings = diagnosis.diagnose(self.rows)
        self._suspects = set(rows[-1].get("suspects", ())) if rows else set()
        for row in rows:
            for check in row.get("checks", ()):
                if check["cause"]:
                    self.named[check["what"]] = check["cause"]

    def start(self, task: Any, graded: int) -> dict[str, Any]:
        """Signals of the untrained student, and what the task itself shows."""
        known = {" ".join(p.question.split()) for p in self.asked.task.train}
        shared = sum(" ".join(p.question.split()) in known for p in task.test[:graded])
        checks = []
        if shared:
            checks = [_check("graded problems trained on", shared, 0, "eval_on_train")]
        right = [
            self.asked.task.grade(problem, self.engine.decode(completion)).strict
            for problem, (_, completion) in zip(self.problems, self.model_answers, strict=True)
        ]
        row = {"step": 0, "tokens": 0, "checks": checks, **self.behaviour()}
        self.rows = [row | {"signal/teacher_accuracy": float(np.mean(right))}]
        self.findings = diagnosis.diagnose(self.rows)
        return self.rows[0]

    def before(self, step: int, fresh: Sequence[Trajectory], batch: Sequence[Trajectory]) -> None:
        """Work out, with the weights as they are, what the step about to be made should report."""
        self._expected, self._rivals, self._row = None, {}, {}
        if not (self.probes(step) or step == 1 or self._suspects):
            return
        self._expected = self._expect(batch)
        if self._suspects:
            self._rivals = self._try_mistakes(batch)
        wanted = [p.id for p in draw(self.asked.task.train, len(fresh), self.asked.seed, step - 1)]
        checks = []
        if sorted(wanted) != sorted(t.problem for t in fresh):
            checks.append(_check("problems that the seed draws", 0, len(wanted), "seeds_ignored"))
        gap = self._sampler_gap([t for t in fresh if t.source == "student" and t.trained])
        if gap > SAMPLER_GAP:
            checks.append(_check("sampler's distance from the student", gap, 0, "stale_sampler"))
        self._row = {"checks": checks, "check/sampler": gap}

    def after(
        self, seen: Mapping[str, Any], stats: StepStats, fresh: Sequence[Trajectory], *, last: bool
    ) -> dict[str, Any]:
        """Compare what a step reported with what it should, and look at the student.

        Args:
            seen: what is known of the step already.
            stats: what it reported.
            fresh: the texts written for it.
            last: whether it is the last.
        """
        row = dict(self._row) | self._texts([t for t in fresh if t.source == "student"])
        if self._expected is not None:
            suspects: set[str] = set()
            for what, trained, wanted in _differences(stats, self._expected):
                cause = self.named.get(what) or self._name(what, trained, stats)
                row["checks"] = [*row["checks"], _check(what, trained, wanted, cause)]
                if cause:
                    self.named[what] = cause
                elif not self._rivals:
                    suspects.add(what)
            self._suspects = suspects
            row["suspects"] = sorted(suspects)
        if last or self.probes(seen["step"]):
            row |= self.behaviour()
        self.rows.append({**seen, **row})
        if self._expected is not None:  # in long runs not after every step
            self.findings = diagnosis.diagnose(self.rows)
        return row

    def probes(self, step: int) -> bool:
        """Whether the student is looked at after this step."""
        return step % self.grading.probe_every == 0

    def _texts(self, written: Sequence[Trajectory]) -> dict[str, float | None]:
        """How the texts look that the student wrote for a step."""
        texts = [t.completion[t.prefix :] for t in written if t.trained]
        if not texts:
            return {}
        return {
            "train/truncated": float(np.mean([text[-1] not in self.engine.eos for text in texts])),
            "train/repetition": float(np.mean([repetition(text) for text in texts])),
            "train/surprise": _mean([-t.logprobs[t.prefix :] for t in written]),
        }

    def _expect(self, batch: Sequence[Trajectory], mistakes: Mistakes = ()) -> StepStats:
        """The report that a step on this batch should give, with mistakes in it or without."""
        return self.engine.measure(as_if(mistakes, self.asked.recipe, batch, self.engine))

    def _try_mistakes(self, batch: Sequence[Trajectory]) -> dict[str, StepStats]:
        """The report that the step would give with each of the known mistakes in it."""
        rivals = {
            name: self._expect(batch, mistakes)
            for name, mistakes in candidates(self.engine.losses).items()
        }
        truncated = "truncated_reverse_kl" in self.engine.losses
        if truncated and self.asked.recipe.student_loss.name == "reverse_kl":
            for kept in KEPT:
                loss = Loss("truncated_reverse_kl", top_k=kept)
                recipe = dataclasses.replace(self.asked.recipe, student_loss=loss)
                data = objective.build(recipe, batch, self.engine)
                rivals[f"top_k_without_tail:{kept}"] = self.engine.measure(data)
        return rivals

    def _name(self, what: str, trained: float | None, stats: StepStats) -> str:
        """The known mistake that explains a difference, or nothing."""
        assert self._expected is not None
        if what == "anchor" and trained is None:
            return "anchor_absent"
        if what == "loss":
            return "mixture_unblended" if _unblended(stats, self._expected) else ""
        tolerance = SLACK if _unblended(stats, self._expected) else TOLERANCE
        for name, rival in self._rivals.items():
            if _close(trained, rival.losses.get(what), tolerance):
                return name.split(":")[0]
        return ""

    def _sampler_gap(self, written: Sequence[Trajectory]) -> float:
        """Mean distance in nats between a sampler's log-probabilities and the student's."""
        if not written:
            return 0.0
        scores = self.engine.score("student", [(t.prompt, t.completion) for t in written])
        gaps = [
            np.abs(t.logprobs - score)[t.prefix :] for t, score in zip(written, scores, strict=True)
        ]
        return float(np.concatenate(gaps).mean())

    def behaviour(self) -> dict[str, float | None]:
        """The student's answers to the probed problems, and its view of the teacher's.

        Returns:
            train/score: mean similarity with the teacher's text, in [0, 1].
            train/kl_divergence: KL(p, q) in nats per token, estimated on the student's own tokens.
            train/accuracy: share of right answers at temperature 1.
            signal/*: see `diagnosis.SIGNALS`.
        """
        engine, task = self.engine, self.asked.task
        prompts = [prompt for prompt, _ in self.model_answers]
        limits = [self.settings.max_tokens] * len(prompts)
        rng = generator(self.asked.seed, 0, "probe")
        samples = engine.sample("student", prompts, limits, 1.0, rng)
        rows = _rows(prompts, samples)
        teacher, student = engine.inspect("teacher", rows), engine.inspect("student", rows)
        reading = engine.inspect("student", self.model_answers)
        gaps = [
            p.logprobs.astype(float) - q.logprobs for p, q in zip(student, teacher, strict=True)
        ]
        texts = [engine.decode(completion) for _, completion in rows]
        pairs = list(zip(self.problems, texts, strict=True))
        ends = [
            look.end[-1]
            for look, (_, completion) in zip(reading, self.model_answers, strict=True)
            if completion and completion[-1] in engine.eos and len(look.end)
        ]
        return {
            "train/score": float(np.mean([self.reference.score(p, text) for p, text in pairs])),
            "train/kl_divergence": _mean(gaps),
            "train/accuracy": float(np.mean([task.grade(p, text).strict for p, text in pairs])),
            "signal/length": float(np.mean([len(s.tokens) for s in samples])),
            "signal/truncated": float(
                np.mean([not s.tokens or s.tokens[-1] not in engine.eos for s in samples])
            ),
            "signal/repetition": float(np.mean([repetition(s.tokens) for s in samples])),
            "signal/entropy": _mean([look.entropy for look in student]),
            "signal/teacher_entropy": _mean([look.entropy for look in teacher]),
            "signal/kl_early": _mean([gap[: len(gap) // 2] for gap in gaps]),
            "signal/kl_late": _mean([gap[len(gap) // 2 :] for gap in gaps]),
            "signal/teacher_loss": _mean([-look.logprobs for look in teacher]),
            "signal/reading_loss": _mean([-look.logprobs for look in reading]),
            "signal/copy": _mean([look.copy for look in reading]),
            "signal/end": float(np.mean(ends)) if ends else None,
        }


def repetition(tokens: Ids) -> float:
    """Share of tokens that are the same as the one before.

    >>> repetition((5, 5, 5, 6)), repetition((5,))
    (0.6666666666666666, 0.0)
    """
    if len(tokens) < 2:
        return 0.0
    return sum(a == b for a, b in pairwise(tokens)) / (len(tokens) - 1)


def _rows(prompts: Sequence[Prompt], samples: Sequence[Sample]) -> list[Reading]:
    return [(prompt, s.tokens) for prompt, s in zip(prompts, samples, strict=True)]


def _mean(rows: Sequence[Floats]) -> float | None:
    values = np.concatenate([np.asarray(row, float) for row in rows]) if rows else np.zeros(0)
    return float(values.mean()) if len(values) else None


def _check(what: str, trained: float | None, expected: float | None, cause: str) -> dict[str, Any]:
    return {"what": what, "trained": trained, "expected": expected, "cause": cause}


def _differences(
    stats: StepStats, expected: StepStats
) -> list[tuple[str, float | None, float | None]]:
    """What a step reports otherwise than expected: its parts, or else their sum."""
    tolerance = SLACK if _unblended(stats, expected) else TOLERANCE
    parts = [
        (part, stats.losses.get(part), expected.losses.get(part))
        for part in dict.fromkeys([*expected.losses, *stats.losses])
    ]
    found = [part for part in parts if not _close(part[1], part[2], tolerance)]
    if _unblended(stats, expected) or not (found or _close(stats.loss, expected.loss)):
        found.append(("loss", stats.loss, expected.loss))
    return found


def _unblended(stats: StepStats, expected: StepStats) -> bool:
    """Whether two sources were added up at full weight."""
    if not {"student", "teacher"} <= stats.losses.keys():
        return False
    whole = sum(stats.losses[source] for source in ("student", "teacher"))
    return _close(stats.loss, whole, SLACK) and not _close(stats.loss, expected.loss, SLACK)


def _close(a: float | None, b: float | None, tolerance: float = TOLERANCE) -> bool:
    if a is None or b is None:
        return a is b
    return abs(a - b) <= tolerance * max(0.1, abs(b))
