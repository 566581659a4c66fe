"""Evaluation of a model on held-out problems, and similarity with the teacher's completions.

Completions are greedy unless the settings draw them, and outcomes are kept per problem, so that
methods can be compared problem by problem. A task without a grader is measured by its distance from
the teacher, see `ungraded`. Probes during training (temperature 1, training problems) are in
`diagnostics.monitor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from potstill.engines.protocol import Engine
from potstill.problems import Evaluation, Graded, Problem
from potstill.settings import Eval
from potstill.tasks import Task, is_graded
from potstill.training import ungraded
from potstill.training.completing import complete, held_out
from potstill.types import Ids, Prompt, Reading, Role

GREEDY = Eval()  # one completion of a problem


@dataclass(frozen=True)
class TeacherCompletions:
    """The teacher's completions, with which the student's are compared.

    Args:
        by_problem: problem id -> completion, the first if there are several.
        tokens: problem id -> ids of each completion, of a task without a grader.
    """

    by_problem: dict[str, str]
    tokens: Mapping[str, Sequence[Ids]] = field(default_factory=dict)

    @classmethod
    def generate(
        cls,
        engine: Engine,
        task: Task,
        problems: Sequence[Problem],
        max_tokens: int,
        settings: Eval = GREEDY,
    ) -> TeacherCompletions:
        """Generate the teacher's completions of the problems; without one, take the data's."""
        if not has_teacher(engine):
            return cls({p.id: p.completions[0] for p in problems if p.completions})
        rows, _, _ = complete(engine, "teacher", task, problems, max_tokens, settings)
        return cls.of(rows)

    @classmethod
    def of(cls, rows: Sequence[Graded]) -> TeacherCompletions:
        """The teacher's completions from an evaluation of it."""
        texts: dict[str, str] = {}
        tokens: dict[str, list[Ids]] = {}
        for row in rows:
            texts.setdefault(row.problem.id, row.text)
            if row.grade is None:
                tokens.setdefault(row.problem.id, []).append(row.ids)
        return cls(texts, tokens)

    def joined(self, other: TeacherCompletions) -> TeacherCompletions:
        """Both sets of completions; the other one's of a problem that both have."""
        return TeacherCompletions(
            self.by_problem | other.by_problem, {**self.tokens, **other.tokens}
        )

    def score(self, problem: Problem, completion: str) -> float | None:
        """Similarity of a completion with the teacher's of the same problem; None: unknown."""
        known = self.by_problem.get(problem.id)
        return None if known is None else similarity(completion, known)


@dataclass
class Evaluator:
    """Evaluates the student of a run at regular intervals.

    Args:
        engine: the engine without faults.
        task: its test problems are evaluated.
        settings: interval, problems and how they are completed.
        max_tokens: limit of completions in training; `settings.max_tokens` overrides it.
        teacher: the teacher's completions of the probe and the evaluated problems; generated here
            if missing.
    """

    engine: Engine
    task: Task
    settings: Eval
    max_tokens: int
    teacher: TeacherCompletions | None = None
    latest: Evaluation | None = None  # made by the last `evaluate_if_due`; None if none was due

    def __post_init__(self) -> None:
        self.problems = held_out(self.task, self.settings)
        if self.teacher is None:
            engine, task, limit = self.engine, self.task, self._max_tokens
            probe = self.task.train[: self.settings.probe]
            self.teacher = TeacherCompletions.generate(engine, task, probe, limit).joined(
                TeacherCompletions.generate(
                    engine, task, self.problems, limit, drawn(task, self.settings)
                )
            )

    @property
    def teacher_completions(self) -> TeacherCompletions:
        """The teacher's completions of the probe and the evaluated problems."""
        assert self.teacher is not None
        return self.teacher

    @property
    def _max_tokens(self) -> int:
        return self.settings.max_tokens or self.max_tokens

    def evaluate_if_due(self, step: int, *, last: bool) -> dict[str, float]:
        """Metrics of the evaluation after `step` optimizer steps; empty if none is due."""
        self.latest = None
        if not last and step % self.settings.every:
            return {}
        self.latest = self.evaluate()
        return metrics_of(self.latest, self.teacher_completions)

    def evaluate(self) -> Evaluation:
        """Evaluate the student with its current weights."""
        return evaluate(
            self.engine,
            "student",
            self.task,
            self.problems,
            self._max_tokens,
            self.settings,
            self.teacher_completions,
        )


def metrics_of(evaluation: Evaluation, teacher: TeacherCompletions) -> dict[str, float]:
    """Metrics of an evaluation: means over its problems.

    Returns:
        eval/accuracy, eval/flexible, eval/format, eval/pass@k: of a task with a grader.
        eval/kl, eval/teacher_loss, eval/student_loss: of a task without one, nats per token.
        eval/avg_score: mean similarity with the teacher's completions, in [0, 1].
        eval/ended: share of completions that end before the limit.
    """
    names = {"strict": "accuracy"} if evaluation.graded else {}
    metrics = {
        f"eval/{names.get(name, name)}": float(values.mean())
        for name, values in evaluation.by_problem.items()
    }
    scores = [teacher.score(row.problem, row.text) for row in evaluation.rows]
    if known := [score for score in scores if score is not None]:
        metrics["eval/avg_score"] = float(np.mean(known))
    metrics["eval/ended"] = float(np.mean([row.ended for row in evaluation.rows]))
    if evaluation.format is not None:
        metrics["eval/format"] = evaluation.format
    return metrics


def evaluate(
    engine: Engine,
    role: Role,
    task: Task,
    problems: Sequence[Problem],
    max_tokens: int,
    settings: Eval = GREEDY,
    teacher: TeacherCompletions | None = None,
) -> Evaluation:
    """Complete the problems; grade them by the task, or measure the distance from the teacher.

    Args:
        engine: has the models.
        role: the model to evaluate.
        task: its grader, if it has one.
        problems: the problems.
        max_tokens: limit of a completion.
        settings: how completions are drawn; default: greedy.
        teacher: its completions of a task without a grader; generated if missing.
    """
    settings = drawn(task, settings)
    rows, prompts, samples = complete(engine, role, task, problems, max_tokens, settings)
    if is_graded(task):
        return Evaluation(tuple(rows), settings.samples, settings.pass_at)
    known = teacher.tokens if teacher else {}
    if role == "teacher":
        known = TeacherCompletions.of(rows).tokens
    elif not known and has_teacher(engine):
        made, _, _ = complete(engine, "teacher", task, problems, max_tokens, settings)
        known = TeacherCompletions.of(made).tokens
    once = prompts[:: settings.samples]
    losses, estimator = ungraded.losses(
        engine,
        role,
        (prompts, samples),
        [_readings(engine, *each, known, max_tokens) for each in zip(once, problems, strict=True)],
        teacher=has_teacher(engine),
    )
    return Evaluation(tuple(rows), settings.samples, losses=losses, estimator=estimator)


def _readings(
    engine: Engine,
    prompt: Prompt,
    problem: Problem,
    known: Mapping[str, Sequence[Ids]],
    limit: int,
) -> list[Reading]:
    """The teacher's completions of a problem after its prompt; without a teacher the data's.

    Those of the data are cut at the limit, as the teacher's are.
    """
    if has_teacher(engine):
        return [(prompt, ids) for ids in known[problem.id]]
    encoded = (engine.encode_completion(prompt, text) for text in problem.completions)
    return [(prompt, ids[:limit]) for ids in encoded]


def drawn(task: Task, settings: Eval) -> Eval:
    """The settings of a task's completions: without a grader they are drawn at temperature 1."""
    return settings if is_graded(task) else settings.model_copy(update={"temperature": 1.0})


def has_teacher(engine: Engine) -> bool:
    """True if the pair has a teacher."""
    return getattr(engine, "has_teacher", True)


def similarity(student: str, teacher: str) -> float:
    """The published study's score: 0.4 Jaccard + 0.3 length ratio + 0.3 bigram recall.

    Words are split at white space and compared without case; lengths are in characters; recall is
    the share of the teacher's word bigrams that the student's completion has. In [0, 1].

    >>> similarity("a b c", "A b c"), similarity("a b", "c d")
    (1.0, 0.3)
    """
    words, teacher_words = student.lower().split(), teacher.lower().split()
    if not words or not teacher_words:
        return float(words == teacher_words)
    jaccard = len({*words} & {*teacher_words}) / len({*words} | {*teacher_words})
    shorter, longer = sorted((len(student.strip()), len(teacher.strip())))
    bigrams, teacher_bigrams = set(pairwise(words)), set(pairwise(teacher_words))
    if teacher_bigrams:
        recall = len(bigrams & teacher_bigrams) / len(teacher_bigrams)
    else:
        recall = float(words == teacher_words)
    return round(0.4 * jaccard + 0.3 * shorter / longer + 0.3 * recall, 6)
