"""A study's problems: without the prompts that are too long, and checked before a model loads.

Lengths are counted with the tokenizers of the study's models. It leaves out the prompts of teachers
with a context, which `validation` checks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.algorithms.recipe import Recipe
from potstill.errors import Errors, PotstillError
from potstill.problems import Messages, Problem
from potstill.settings import Eval
from potstill.study.schema import Study
from potstill.study.validation import TEMPLATE
from potstill.tasks import Resplit, Task, check_disjoint, load_task
from potstill.tasks.data.table import Problems
from potstill.tasks.rendering import plain, render
from potstill.tasks.selecting import without_answer
from potstill.training.completing import held_out
from potstill.types import ModelSpec, Role

MARGIN = 16  # tokens
TokenCount = Callable[[str | Messages], int]


@dataclass(frozen=True)
class Shortened(Resplit):
    """A task without the prompts that are too long; the note has their number."""

    left_out: str = ""

    @property
    def note(self) -> str:
        return self.left_out


def study_task(study: Study) -> Task:
    """The task of a study, without prompts of more than `train.max_prompt_tokens` tokens.

    A prompt is too long if it is for one student of the study, so that all of its pairs have the
    same problems.

    Raises:
        PotstillError: no problem is left, or the data cannot be read.
    """
    task, limit = load_task(**study.task), study.train.max_prompt_tokens
    if not limit:
        return task
    students = dict.fromkeys(pair.student for pair in study.models.values())
    counts = [_count(study, student, "student") for student in students]
    parts: list[Sequence[Problem]] = []
    notes = []
    for name, problems in (("training", task.train), ("held-out", task.test)):
        long = {place for count in counts for place, _ in _longer(problems, count, limit)}
        parts.append(_without(problems, long))
        notes.append(f"{len(long):,} of {len(problems):,} {name} prompts")
        if not parts[-1]:
            raise PotstillError(
                f"all {len(problems):,} {name} prompts have more than {limit:,} tokens",
                "raise train.max_prompt_tokens",
            )
    note = f"{' and '.join(notes)} have more than {limit:,} tokens and are left out"
    return Shortened(task, parts[0], parts[1], note)


def add_data_errors(table: Any, study: Study | None, errors: Errors) -> None:
    """Add those of a task's files to the other errors of a study, so that all are in one answer.

    Args:
        table: the study's table of its task.
        study: None if its settings are wrong.
        errors: of the study.
    """
    if not isinstance(table, Mapping) or not table.get("train_path"):
        return  # no files; nothing is generated, or loaded from the Hub, for an error
    with errors:
        task, sound = load_task(**table), True
        for split in ("train", "test"):
            try:
                getattr(task, split)
            except PotstillError as error:
                errors.add(error)
                sound = False
        if sound:
            check_disjoint(task, held_out(task, study.eval if study else Eval()))


def check_references(study: Study, task: Task) -> None:
    """Check that training problems have reference answers, where their completions are graded.

    Raises:
        PotstillError: some have none, and the grader needs one.
    """
    grader = getattr(task, "graded_by", None)
    users = [name for name, recipe in study.recipes.items() if grades_training(recipe)]
    users += ["train.validation"] if study.train.validation else []
    if grader is None or not users:
        return
    lacking = without_answer(task.train)
    try:
        for place in lacking[:1]:
            grader.check(task.train[place])
    except PotstillError as error:
        raise PotstillError(
            f"{users[0]} grades completions of training problems, and {len(lacking):,} of "
            f"{len(task.train):,} have no reference answer (first: {task.train[lacking[0]].id}): "
            f"{error}",
            "give them an answer, or leave it out",
        ) from None


def grades_training(recipe: Recipe) -> bool:
    """True if a recipe depends on grades of training problems."""
    return recipe.reject_wrong or recipe.prefix_over == "success"


def check_lengths(study: Study, task: Task, evaluated: Sequence[Problem]) -> None:
    """Check that prompts leave room for a completion, for models whose files are on this machine.

    A table of positions has to hold the longest completion too; a model that reads on beyond its
    window has to read the prompt inside of it.

    Raises:
        PotstillError: some do not, with their number.
    """
    if study.engine.name != "torch":
        return
    errors = Errors()
    for name, pair in study.models.items():
        models: dict[str, Role] = {pair.student: "student"}
        if name not in study.contexts:
            teachers = [model for model in (pair.teacher, *pair.teachers.values()) if model]
            models = {**dict.fromkeys(teachers, "teacher"), **models}
        for model, role in models.items():
            if Path(model).expanduser().is_dir():
                with errors:
                    _check_model(study, model, role, task, evaluated)
    errors.check()


def _check_model(
    study: Study, model: str, role: Role, task: Task, evaluated: Sequence[Problem]
) -> None:
    tokens = max(study.train.max_tokens, study.graded_tokens)
    if _are_short((task.train, evaluated), _positions(model) - tokens):
        return  # transformers is not imported
    from potstill.engines.torch.checkpoints import Checkpoint
    from potstill.engines.torch.windows import window_of

    window = window_of(Checkpoint.find(model, _spec(study, role).trust_remote_code).config)
    if not window.tokens:
        return
    count = _count(study, model, role)
    for name, problems, tokens in (
        ("training", task.train, study.train.max_tokens),
        ("graded", evaluated, study.graded_tokens),
    ):
        limit = window.tokens - (tokens if window.fixed else 1)
        if long := _longer(problems, count, limit):
            place, size = max(long, key=lambda pair: pair[1])
            room = f", and up to {tokens} of completion follow" if window.fixed else ""
            raise PotstillError(
                f"prompts leave room for a completion: {len(long):,} of {len(problems):,} {name} "
                f'prompts do not in the {window.tokens:,} positions of "{model}" (the longest, '
                f"{problems[place].id}, has {size:,} tokens{room})",
                f"write train.max_prompt_tokens = {max(limit, 1)}, which leaves longer ones out, "
                "or shorten them",
            )


def _positions(model: str) -> int:
    """Positions in a model's config.json, at least this many; 0: unknown."""
    try:
        config = json.loads((Path(model).expanduser() / "config.json").read_text("utf-8"))
        config = {**config, **config.get("text_config", {})}
        sizes = [config[key] for key in ("max_position_embeddings", "n_positions") if key in config]
        return min(sizes, default=0) - MARGIN
    except (OSError, ValueError, TypeError, AttributeError):  # its reader reports it
        return 0


def _are_short(splits: Iterable[Sequence[Problem]], limit: int) -> bool:
    """True if no prompt can have more tokens than a limit, whatever the tokenizer is."""
    return not any(_maybe_longer(problems, limit - TEMPLATE) for problems in splits)


def _maybe_longer(problems: Sequence[Problem], limit: int) -> list[int]:
    """Places of the prompts whose texts have more bytes than a limit: a token has at least one."""
    if isinstance(problems, Problems):
        return list(problems.longer(limit, TEMPLATE))
    return [
        place
        for place, problem in enumerate(problems)
        if len(plain(problem.conversation).encode()) + TEMPLATE * len(problem.messages) > limit
    ]


def _spec(study: Study, role: Role) -> ModelSpec:
    spec: ModelSpec = getattr(study.engine, role, ModelSpec())
    return spec


def _count(study: Study, model: str, role: Role) -> TokenCount:
    """Counts the tokens of a prompt as a model reads it; the fake engine reads characters."""
    if study.engine.name == "fake":
        return lambda conversation: len(plain(conversation).rstrip("\n"))
    from potstill.engines.torch.checkpoints import Checkpoint

    spec = _spec(study, role)
    tokenizer = Checkpoint.find(model, spec.trust_remote_code).tokenizer
    return lambda conversation: len(render(tokenizer, conversation, spec))


def _longer(problems: Sequence[Problem], count: TokenCount, limit: int) -> list[tuple[int, int]]:
    """Places and tokens of the prompts with more tokens than a limit."""
    added = count("A") + MARGIN  # by the template, and where it meets the question
    sizes = []
    for place in _maybe_longer(problems, limit - added):
        if (size := count(problems[place].conversation)) > limit:
            sizes.append((place, size))
    return sizes


def _without(problems: Sequence[Problem], places: Collection[int]) -> Sequence[Problem]:
    if not places:
        return problems
    rest = [place for place in range(len(problems)) if place not in places]
    if isinstance(problems, Problems):
        return problems.at(rest)
    return [problems[place] for place in rest]
