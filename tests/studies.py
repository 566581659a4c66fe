"""Study folders with made-up numbers, written by the functions that a real study uses.

For tests of what reads a folder. The curves are plausible, the models do not exist.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from potstill.algorithms.recipe import Recipe
from potstill.problems import Evaluation, Grade, Graded, Problem
from potstill.study.loading import read_study
from potstill.study.provenance import provenance
from potstill.study.record import of_evaluation
from potstill.study.schema import Study
from potstill.study.storage import REFERENCES, RunFolder, RunId, StudyFolder, example, runs_of

Kind = Literal["right", "shares", "nats", "no teacher"]  # of outcomes
SAMPLES = 4  # completions of a problem behind a share

UNTRAINED, TEACHER = 0.48, 0.88  # share of problems solved
GAIN = {"off_policy": 0.10, "kl_anchored": 0.04, "mixture": 0.06, "reverse_curriculum": -0.2}

FINDING = {  # as a run records a collapse
    "kind": "collapse",
    "cause": "unshifted_targets",
    "step": 5,
    "found": 10,
    "evidence": "<i>0% of the probe right</i>",
    "advice": "shift",
}
HOSTILE = (  # a completion that a page must show and must not run
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    "</pre></script><svg onload=window.hacked=1>\u202egnitrow\u0007\x00"
    "<a href='javascript:window.hacked=1'>" + "x" * 100_000
)

Fate = Mapping[str, Any]  # see write_study


def small_study(**changes: Any) -> Study:
    """Two methods on one embedded pair, two seeds."""
    table: dict[str, Any] = {
        "name": "synthetic",
        "engine": "fake",
        "pairs": ["tiny-qwen"],
        "methods": ["on_policy_gkd", "hybrid"],
        "seeds": [0, 1],
        "train": {"steps": 20, "max_tokens": 32},
        "eval": {"every": 10, "problems": 40, "probe_every": 5},
    }
    return read_study({**table, **changes})


def write_study(
    path: Path,
    study: Study,
    fate: Callable[[RunId], Fate] = lambda cell: {},
    kind: Kind = "right",
) -> StudyFolder:
    """Write a whole study's folder.

    Args:
        path: the folder.
        study: its settings.
        fate: what becomes of a cell: nothing in the mapping and it ends well; `skip` and it is not
            there; `stop` = a step after which nothing is recorded and no result is written;
            `fail` = the cause of its failure; `findings` and `ended` are recorded as they are;
            `text` = what its student writes; `null` and its losses are null; `more` = further
            fields of its record.
        kind: 0 and 1; means of four completions with pass@2 and pass@4; without a grader; the same
            without a teacher, whose baseline then has no run.
    """
    folder = StudyFolder(path)
    folder.open(study)
    for cell in runs_of(study):
        told = {"kind": kind, **fate(cell)}
        if kind == "no teacher" and cell.method == "teacher":
            continue
        if not told.get("skip"):
            _write_cell(study, folder, cell, told)
    return folder


def rewrite(place: RunFolder, **changes: Any) -> None:
    """Record a run again after its files were written by hand, with some other values."""
    file = place.path / "result.json"
    record = {**json.loads(file.read_text()), **changes}
    place.finish({key: value for key, value in record.items() if key != "digest"})


def _write_cell(study: Study, folder: StudyFolder, cell: RunId, told: Fate) -> None:
    teacher = {p.id: p.solution for p in _problems(study)}
    place = folder.cell(cell, teacher=teacher, examples=study.eval.examples)
    place.path.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"pair": cell.pair, "method": cell.method, "seed": cell.seed}
    if cell.method in REFERENCES:
        graded = _grade(study, cell, TEACHER if cell.method == "teacher" else UNTRAINED, told)
        place.add_completions([example(0, row) for row in graded.rows])
        steps, tokens = 0, {}
    else:
        recipe = study.recipes[cell.method]
        steps = min(study.total_steps(recipe), told.get("stop", math.inf))
        tokens, graded = _train(study, place, cell, recipe, steps, told)
    if "stop" in told:
        return
    record |= {"status": "done", "steps": steps, "tokens": tokens, **of_evaluation(graded)}
    record |= {"findings": told.get("findings", []), "ended": told.get("ended")}
    record |= {"seconds": 1.5 + 0.1 * steps, "notes": [], **told.get("more", {})}
    record["activity"] = {"scoring": 0.5, "forward and backward": 1.0, "other": 0.1 * steps}
    if "fail" in told:
        keep = {key: record[key] for key in ("pair", "method", "seed", "steps")}
        record = {**keep, "status": "failed", "cause": told["fail"], "traceback": "Traceback ..."}
    place.finish({**record, "provenance": provenance()})


def _train(
    study: Study, place: RunFolder, cell: RunId, recipe: Recipe, steps: int, told: Fate
) -> tuple[dict[str, int], Evaluation]:
    total, gain = study.total_steps(recipe), GAIN.get(cell.method, 0.12)
    rng = np.random.default_rng([cell.seed or 0, *cell.method.encode()])
    spent, graded = 0, _grade(study, cell, UNTRAINED, told)
    for step in range(1, steps + 1):
        t, spent = step / total, spent + 3 * study.train.batch_size * 8
        learnt = 1 - math.exp(-4 * t)
        row: dict[str, Any] = {
            "step": step,
            "train/loss": None if told.get("null") else 1.4 - learnt + 0.05 * rng.normal(),
            "train/on_policy_loss": None,
            "train/phase": recipe.on_policy((step - 1) / total),
            "train/seed_tokens": float(int(recipe.prefix((step - 1) / total))),
            "tokens": spent,
        }
        if step % study.eval.probe_every == 0 or step == total:
            row["train/score"] = 0.5 + 0.3 * learnt + 0.02 * rng.normal()
            row["train/kl_divergence"] = 0.9 - 0.6 * learnt + 0.02 * rng.normal()
        looked = step % study.eval.every == 0 or step == total
        if looked:
            graded = _grade(study, cell, UNTRAINED + gain * learnt + 0.01 * rng.normal(), told)
            row |= {
                f"eval/{name.replace('strict', 'accuracy')}": float(values.mean())
                for name, values in graded.by_problem.items()
            }
        place.record(row, graded if looked else None)
    thirds = dict.fromkeys(("student_sampled", "teacher_scored", "trained"), spent // 3)
    return {**thirds, "teacher_sampled": 0, "prompt": 2 * spent}, graded


def _problems(study: Study) -> Sequence[Problem]:
    rng = np.random.default_rng(7)
    found = []
    for i in range(study.eval.problems):
        a, b, c = (int(n) for n in rng.integers(10, 99, 3))
        text = f"{a} + {b} = {a + b}; {a + b} - {c} = {a + b - c}\n#### {a + b - c}"
        found.append(Problem(f"test-{i}", f"{a} + {b} - {c} = ?", str(a + b - c), text))
    return found


def _grade(study: Study, cell: RunId, skill: float, told: Fate) -> Evaluation:
    """Problems get harder along the list's shuffled order; a little luck decides the rest."""
    if told["kind"] in ("nats", "no teacher"):
        return _measure(study, cell, skill, told)
    samples = SAMPLES if told["kind"] == "shares" else 1
    rng = np.random.default_rng([cell.seed or 0, *cell.method.encode(), int(1000 * abs(skill))])
    hard = np.random.default_rng(3).permutation(study.eval.problems) / study.eval.problems
    rows = []
    drawn = zip(_problems(study), hard, strict=True)
    for problem, difficulty in (one for one in drawn for _ in range(samples)):
        right = bool(difficulty + 0.08 * rng.normal() < skill)
        wrong = problem.solution.replace(f"#### {problem.answer}", f"so {problem.answer}1")
        text = told.get("text", problem.solution if right else wrong)
        grade = Grade(strict=right, flexible=right or bool(rng.random() < 0.05))
        rows.append(Graded(problem, text, grade, tokens=len(text) // 3, ended=right))
    return Evaluation(tuple(rows), samples, (2, 4) if samples > 1 else ())


def _measure(study: Study, cell: RunId, skill: float, told: Fate) -> Evaluation:
    """Nats per token: a few problems have most of the KL; a more skilled student has less."""
    rng = np.random.default_rng([cell.seed or 0, *cell.method.encode(), int(1000 * abs(skill))])
    base = np.exp(0.8 * np.random.default_rng(3).normal(size=study.eval.problems))
    rows = [
        Graded(problem, told.get("text", problem.solution), None, 20, ended=True)
        for problem in _problems(study)
    ]
    far = max(0.0, 1 - 2.5 * (skill - UNTRAINED))
    kl = 0.5 * base * far * np.exp(0.2 * rng.normal(size=len(base)))
    losses = {"kl": kl, "teacher_loss": 0.8 + 0.5 * kl, "student_loss": 1.1 + 0.7 * kl}
    if cell.method == "teacher":
        losses = {"kl": 0 * base, "teacher_loss": 0.8 + 0 * base, "student_loss": 0.8 + 0 * base}
    if told["kind"] == "no teacher":
        losses = {"student_loss": losses["student_loss"]}
    return Evaluation(tuple(rows), losses=losses, estimator="full vocabulary")
