"""The named deviations from the semantics, applied from outside the loop and the engine.

A fault is a value that changes what a cell is about to be trained with: the recipe, the task,
the seed, the pair's folders, or the engine, wrapped in something that spoils what passes through
it. Loop and engines contain none of this. A study switches faults on by name, for experiments;
every report of such a study says so.

The first eight are those of the published study's code (github.com/bledden/context-distillation-
tinkerideas, commit 6c3ae3f); the others are what the field keeps making.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.faults import wrappers
from potstill.diagnostics.faults.vocabulary import permuted_teacher
from potstill.engines.protocol import Engine
from potstill.errors import PotstillError, did_you_mean
from potstill.tasks import Task
from potstill.training.run import Run
from potstill.types import Loss, Problem

Hook = Callable[[Run], Run]


@dataclass(frozen=True)
class Fault:
    """One deviation.

    `published` marks those of the published study's code; `where` says at which place of it, or how
    the field comes by it; `remedy` what to do about it. `apply` changes a run, `teacher` the
    teacher's folder before it opens; `touches` tells which recipes it changes at all.
    """

    name: str
    what: str
    where: str
    remedy: str
    apply: Hook = field(compare=False, default=lambda run: run)
    teacher: Callable[[str, Path], str] | None = field(compare=False, default=None)
    published: bool = False
    touches: Callable[[Recipe], bool] = field(compare=False, default=lambda recipe: True)


def _wrap(wrapper: Callable[..., Engine], *settings: Any) -> Hook:
    return lambda run: dataclasses.replace(run, engine=wrapper(run.engine, *settings))


def _recipe(change: Callable[[Recipe], Recipe]) -> Hook:
    return lambda run: dataclasses.replace(run, recipe=change(run.recipe))


@dataclass(frozen=True)
class TrainedOn:
    """A task that is graded on its own training problems."""

    task: Task

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def train(self) -> Sequence[Problem]:
        return self.task.train

    @property
    def test(self) -> Sequence[Problem]:
        return self.task.train

    def grade(self, problem: Problem, text: str) -> Any:
        return self.task.grade(problem, text)


def _mixes(recipe: Recipe) -> bool:
    """Whether some step has both sources in it."""
    return recipe.on_policy.kind != "switch" and recipe.uses_student and recipe.uses_teacher


def _unseeded(run: Run) -> Run:
    return dataclasses.replace(run, seed=int.from_bytes(os.urandom(4)))


def _without_tail(recipe: Recipe) -> Recipe:
    loss = Loss("truncated_reverse_kl", top_k=8)
    return dataclasses.replace(recipe, student_loss=loss, clip_advantage=0.0)


_FAULTS = (
    Fault(
        "unshifted_targets",
        "supervised steps ask position i for token i: the student learns to copy",
        "tinker_trainer.py, train_supervised_step",
        "shift: position i predicts token i + 1, so targets are the ids from 1 on",
        _wrap(wrappers.UnshiftedTargets),
        published=True,
        touches=lambda recipe: recipe.uses_teacher,
    ),
    Fault(
        "prompt_dropped",
        "the step on student tokens runs on the completion alone",
        "train_gkd_step",
        "run the step on prompt and completion, and give the prompt weight 0",
        _wrap(wrappers.PromptDropped),
        published=True,
        touches=lambda recipe: recipe.uses_student,
    ),
    Fault(
        "stale_sampler",
        "the student samples with weights refreshed every 20 steps",
        "refresh_student_every",
        "refresh the sampler after every optimizer step",
        _wrap(wrappers.StaleSampler, 20),
        published=True,
        touches=lambda recipe: recipe.uses_student,
    ),
    Fault(
        "prefix_trained",
        "seeded tokens get sampler log-probability 0: the teacher's own tokens are pushed down",
        "_generate_student_response_seeded",
        "give seeded tokens weight 0: they are context",
        _wrap(wrappers.PrefixTrained),
        published=True,
        touches=lambda recipe: recipe.prefix.range[1] > 0,
    ),
    Fault(
        "anchor_absent",
        "the KL anchor is the constant 0",
        "run_kl_anchored_off_policy",
        "compute KL(p, p0) in the step; a constant has no gradient",
        _recipe(lambda recipe: dataclasses.replace(recipe, anchor=0.0)),
        published=True,
        touches=lambda recipe: recipe.anchor > 0,
    ),
    Fault(
        "mixture_unblended",
        "student and teacher tokens get an optimizer step each, both at full weight",
        "run_mixture_distillation",
        "weigh the sources by their shares and add them up before the one step",
        _wrap(wrappers.MixtureUnblended),
        published=True,
        touches=_mixes,
    ),
    Fault(
        "eval_on_train",
        "accuracy is graded on training problems",
        "run_cliff_mitigation_experiment.py",
        "grade on the test split: training problems do not show what was learned",
        lambda run: dataclasses.replace(run, task=TrainedOn(run.task)),
        published=True,
    ),
    Fault(
        "seeds_ignored",
        "nothing is seeded: the cell's seed is replaced by the system's entropy",
        "run_cliff_mitigation_experiment.py",
        "pass the seed on: without it no run can be repeated",
        _unseeded,
        published=True,
    ),
    Fault(
        "eos_untrained",
        "EOS carries no loss: the student never learns to stop",
        "pad token is EOS, and padding is masked",
        "EOS is a token of the completion: do not mask it with the padding",
        _wrap(wrappers.EosUntrained),
    ),
    Fault(
        "template_mismatch",
        "the teacher scores under another rendering of the prompt",
        "chat template applied twice",
        "render the prompt once and give both models the same ids",
        _wrap(wrappers.TemplateMismatch),
    ),
    Fault(
        "teacher_shifted",
        "the teacher's rows are off by one position",
        "logits sliced [P:] where [P-1:-1] is meant",
        "the teacher's row for token i is its output after i tokens: [P - 1 : -1]",
        _wrap(wrappers.TeacherShifted),
    ),
    Fault(
        "vocab_permuted",
        "the two vocabularies agree in size but not in ids",
        "tokenizers compared by their length",
        "check that an id means the same token in both models, not only their number",
        teacher=permuted_teacher,
    ),
    Fault(
        "learning_rate_spike",
        "the learning rate is 100 times too high for 3 steps from step 40 on",
        "a schedule restarted, a unit mistyped",
        "look at the learning rate's schedule; clip gradients; go on from an earlier checkpoint",
        _wrap(wrappers.LearningRateSpike, 40, 3, 100.0),
    ),
    Fault(
        "top_k_without_tail",
        "reverse KL on the teacher's 8 likeliest ids, no bucket for the rest: mass can drain away",
        "top-k log-probabilities of a service used as if they were the row",
        "keep one bucket for the mass outside the top k: topk_reverse_kl",
        _recipe(_without_tail),
    ),
)

# These go outermost: they count the loop's steps, which others may split.
_COUNTING = ("stale_sampler", "learning_rate_spike")

FAULTS: dict[str, Fault] = {fault.name: fault for fault in _FAULTS}
PUBLISHED = tuple(fault.name for fault in _FAULTS if fault.published)


def check_faults(names: Sequence[str]) -> None:
    """Refuse unknown names and repeated ones."""
    for name in names:
        if name not in FAULTS:
            raise PotstillError(f'unknown fault "{name}"', did_you_mean(name, FAULTS, "faults"))
    if len(set(names)) < len(names):
        raise PotstillError(f"faults lists {list(names)}, one of them twice", "list each once")


def teacher_for(names: Sequence[str], teacher: str, folder: Path) -> str:
    """The teacher that the named faults put in the place of `teacher`, made in `folder`."""
    for name in names:
        if change := FAULTS[name].teacher:
            teacher = change(teacher, folder / name)
    return teacher


def apply(names: Sequence[str], run: Run) -> Run:
    """The run with the named faults switched on, whatever the order of the names."""
    check_faults(names)
    for fault in sorted(_FAULTS, key=lambda fault: fault.name in _COUNTING):
        if fault.name in names:
            run = fault.apply(run)
    return run
