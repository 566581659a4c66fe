"""Faults in the set-up of a run: recipe, task and seed."""

from __future__ import annotations

import dataclasses
import os

from potstill.algorithms.losses import TruncatedReverseKL
from potstill.algorithms.recipe import CLIP_RATIO, Recipe
from potstill.diagnostics.faults.base import Fault
from potstill.tasks import Resplit
from potstill.training.run import RunSpec


class AnchorAbsent(Fault):
    """The KL anchor is the constant 0."""

    name = "anchor_absent"
    what = "the KL anchor is the constant 0"
    where = "run_kl_anchored_off_policy"
    remedy = "compute KL(p, p0) in the step: a constant has no gradient"
    published = True

    def touches(self, recipe: Recipe) -> bool:
        return recipe.anchor > 0

    def apply(self, run: RunSpec) -> RunSpec:
        return dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, anchor=0.0))


class TopKWithoutTail(Fault):
    """Reverse KL on the teacher's likeliest ids only."""

    name = "top_k_without_tail"
    what = "reverse KL covers the teacher's 8 likeliest ids and no tail: moving mass away lowers it"
    where = "a service's top-k log-probs are used as full-vocabulary log-probs"
    remedy = "add one bucket for the mass outside the top k: use topk_reverse_kl"

    def apply(self, run: RunSpec) -> RunSpec:
        loss = TruncatedReverseKL(8)
        recipe = dataclasses.replace(
            run.recipe, student_loss=loss, clip_advantage=0.0, clip_ratio=CLIP_RATIO
        )
        return dataclasses.replace(run, recipe=recipe)


class EvalOnTrain(Fault):
    """Accuracy is measured on training problems."""

    name = "eval_on_train"
    what = "accuracy is measured on training problems"
    where = "run_cliff_mitigation_experiment.py"
    remedy = "evaluate on the test split: accuracy on training problems shows memorization"
    published = True

    def apply(self, run: RunSpec) -> RunSpec:
        return dataclasses.replace(run, task=Resplit(run.task, run.task.train, run.task.train))


class SeedsIgnored(Fault):
    """The run's seed is replaced by a random one."""

    name = "seeds_ignored"
    what = "nothing is seeded: a random number replaces the run's seed"
    where = "run_cliff_mitigation_experiment.py"
    remedy = "pass the seed on: a run without it cannot be repeated"
    published = True

    def apply(self, run: RunSpec) -> RunSpec:
        return dataclasses.replace(run, seed=int.from_bytes(os.urandom(4)))
