"""`potstill ls`: names that a study file or the command line can use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.app import LOOK, command
from potstill.cli.options import AsJson
from potstill.cli.tables import print_json, print_table
from potstill.cli.terminal import echo
from potstill.errors import PotstillError, did_you_mean

if TYPE_CHECKING:
    from potstill.algorithms.recipe import Recipe

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Listing:
    """Something that can be listed."""

    summary: str
    records: Callable[[], Records]


def _completed() -> list[tuple[str, str]]:
    """Names of the lists, for shell completion."""
    return [(name, one.summary) for name, one in LISTS.items()]


@command("ls", LOOK, "potstill ls", "potstill ls methods", "potstill ls faults --json")
def ls(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[LIST]",
            show_default=False,
            help="The list to print. [default: all lists, a line each]",
            autocompletion=_completed,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List methods, pairs, tasks, graders, engines, losses, schedules, faults or trackers."""
    rows = lists() if what is None else listing(what)
    if as_json:
        print_json(rows)
    else:
        print_table(rows)
        if what is None and sys.stdout.isatty():
            echo("\n`potstill ls LIST` shows one of them.")


def lists() -> Records:
    """The lists, a line each."""
    return [{"list": name, "what": one.summary} for name, one in LISTS.items()]


def listing(name: str) -> Records:
    """The records of one of `LISTS`."""
    if name not in LISTS:
        raise PotstillError(f'nothing to list under "{name}"', did_you_mean(name, LISTS, "lists"))
    return LISTS[name].records()


def _methods() -> Records:
    from potstill.algorithms.methods import KNOWN

    return [{"method": recipe.name, **recipe_row(recipe)} for recipe in KNOWN.values()]


def recipe_row(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields as short text."""
    return {
        "on_policy": str(recipe.on_policy),
        "prefix": str(recipe.prefix),
        "student_loss": str(recipe.student_loss) if recipe.uses_student else "-",
        "teacher_loss": str(recipe.teacher_loss) if recipe.uses_teacher else "-",
        "anchor": recipe.anchor or "-",
        "replay": recipe.replay.capacity if recipe.replay else "-",
        "budget": recipe.budget,
        "hypothesis": recipe.hypothesis,
    }


def _pairs() -> Records:
    from potstill.engines import zoo

    return [
        {"pair": name, "what": what, "context": ", ".join(zoo.CONTEXTS.get(name, ())) or "-"}
        for name, what in zoo.PAIRS.items()
    ]


def _tasks() -> Records:
    from potstill.tasks import TASKS

    return [{"task": name, "what": what} for name, (_, _, what) in TASKS.items()]


def _graders() -> Records:
    from potstill.tasks.graders import GRADERS

    return [{"grader": name, "what": what} for name, (_, _, what) in GRADERS.items()]


def _engines() -> Records:
    from potstill.engines.registry import ENGINES

    return [
        {"engine": name, "what": info.summary, "losses": ", ".join(sorted(info.losses))}
        for name, info in ENGINES.items()
    ]


def _losses() -> Records:
    from potstill.algorithms.losses import CROSSING, FAULTY, LOSSES

    needs = {
        "tokens": "tokens",
        "full_logprobs": "the teacher's full-vocabulary log-probs",
        "token_scores": "the teacher's log-prob of each token",
    }
    return [
        {
            "loss": name,
            "needs": "a teacher with another tokenizer" if name in CROSSING else needs[loss.needs],
        }
        for name, loss in LOSSES.items()
        if name not in FAULTY
    ]


def _schedules() -> Records:
    from potstill.algorithms.schedules import SHAPES

    return [{"schedule": kind} for kind in SHAPES]


def _faults() -> Records:
    from potstill.diagnostics.faults import FAULTS

    return [
        {
            "fault": fault.name,
            "what": fault.what,
            "where": fault.where,
            "published": "yes" if fault.published else "-",
        }
        for fault in FAULTS.values()
    ]


def _trackers() -> Records:
    from potstill.study.tracking.registry import TRACKERS

    return [{"tracker": name, "what": info.summary} for name, info in TRACKERS.items()]


LISTS: dict[str, Listing] = {
    "methods": Listing("recipes to distil with: who writes the tokens, which losses", _methods),
    "pairs": Listing("embedded pairs of a student and a teacher", _pairs),
    "tasks": Listing("problems to train on and to evaluate with", _tasks),
    "graders": Listing("ways to grade a completion, for a task's option `grade`", _graders),
    "engines": Listing("where models are run and trained", _engines),
    "losses": Listing("per-token losses, and what each needs of the teacher", _losses),
    "schedules": Listing("shapes of a value that changes during a run", _schedules),
    "faults": Listing("known bugs, to switch on in an experiment", _faults),
    "trackers": Listing("experiment trackers that metrics are sent to", _trackers),
}
