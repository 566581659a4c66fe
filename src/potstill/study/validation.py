"""Static checks of a study: recipes against the engine, tokenizers, model references, teachers.

All of them run before a model is opened. Types and ranges of single fields are in `schema`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from potstill.algorithms.losses import (
    CROSSED,
    CROSSING,
    FAULTY,
    GOLD_HINT,
    ONE_TOKENIZER,
    REVERSE_KL,
)
from potstill.algorithms.recipe import Recipe, anchor_losses
from potstill.engines import zoo
from potstill.errors import Errors, PotstillError, did_you_mean
from potstill.fields import brief
from potstill.problems import Problem
from potstill.study.schema import Study
from potstill.tasks import Task
from potstill.tasks.context.builder import PromptBuilder
from potstill.tasks.rendering import plain, render
from potstill.training.rollout import check_prefix
from potstill.types import WHOLE, ModelSpec

_HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)  # OWNER/NAME
TEACHERS_FAULTS = ("template_mismatch", "teacher_shifted", "vocab_permuted")
TEMPLATE = 256  # bytes that a chat template may add to a message


def check_recipe(recipe: Recipe, study: Study, losses: frozenset[str]) -> None:
    """Check a recipe against the training settings and the losses of the engine."""
    check_prefix(recipe, study.train.max_tokens)
    if recipe.interleave and "reverse_kl" not in losses:
        raise PotstillError(
            f"{recipe.name} interleaves by the teacher's ranks, which engine "
            f'"{study.engine.name}" does not know',
            'use engine = "torch"',
        )
    for used in recipe.losses:
        if used.name in FAULTY:
            raise PotstillError(
                f"{recipe.name} asks for {used}, which is not a divergence",
                f"write {{ topk_reverse_kl = {used.settings['k']} }}, which has a tail bucket",
            )
        if used.name not in losses:
            raise PotstillError(
                f'{recipe.name} needs {used}, which engine "{study.engine.name}" cannot compute',
                f"its losses: {', '.join(sorted(losses))}",
            )
    check_samplers(recipe, study)


def check_samplers(recipe: Recipe, study: Study) -> None:
    """Check that the probabilities are known with which truncated samplers draw."""
    train, served = study.train, study.engine.name == "tinker"
    cut = {"": train.truncation != WHOLE, "teacher_": train.teacher_truncation != WHOLE}
    for role, short in cut.items():
        names = ", ".join(f"train.{role}{name}" for name in ("top_k", "top_p", "min_p"))
        if served and getattr(train, f"{role}min_p"):
            raise PotstillError(
                f'engine "tinker" samples with top_k and top_p alone, got train.{role}min_p = '
                f"{getattr(train, f'{role}min_p'):g}",
                f"leave it out, or use train.{role}top_p",
            )
        if served and study.eval.min_p:
            raise PotstillError(
                'engine "tinker" samples with top_k and top_p alone, got eval.min_p = '
                f"{study.eval.min_p:g}",
                "leave it out, or use eval.top_p",
            )
        used = short and (recipe.uses_teacher if role else recipe.uses_student)
        losses = [recipe.teacher_loss if role else recipe.student_loss, *anchor_losses(recipe)]
        ratios = [loss for loss in losses if loss.needs == "token_scores"]
        if used and ratios and served:
            raise PotstillError(
                f"{recipe.name} needs the probability with which each token was drawn, for "
                f"{ratios[0]}, and a training service does not tell it of a truncated sampler",
                f"leave {names} out",
            )
    ratios = [loss for loss in recipe.losses if loss.needs == "token_scores"]
    if recipe.interleave and ratios and any(cut.values()):
        raise PotstillError(
            f"{recipe.name} interleaves two models and needs the probability of each token, for "
            f"{ratios[0]}, which is not computed for truncated samplers",
            "leave top_k, top_p and min_p out, or use a loss on whole distributions",
        )


def check_tokenizers(study: Study, pair: str, differ: bool | None) -> None:
    """Check losses and teachers against a pair's tokenizers; `differ` is None if unknown."""
    if differ and study.models[pair].teachers:
        raise PotstillError(
            f'the tokenizers of pair "{pair}" differ, and it has several teachers',
            "multiple teachers require the student's tokenizer: leave route and teachers out",
        )
    for recipe in study.recipes.values():
        for used in recipe.losses:
            if differ and used.to == "teacher" and used.name not in CROSSED:
                raise PotstillError(
                    f"{recipe.name} needs {used}, the teacher's log-probs over the student's "
                    f'vocabulary, and the tokenizers of pair "{pair}" differ',
                    GOLD_HINT,
                )
            if differ is False and used.name in CROSSING:
                raise PotstillError(
                    f"{recipe.name}: {ONE_TOKENIZER} ({pair})",
                    f"write {{ jsd = {used.settings['beta']} }}",
                )
        if differ and recipe.anchor and recipe.uses_teacher and recipe.anchor_loss != REVERSE_KL:
            raise PotstillError(
                f"{recipe.name} anchors the teacher's completions by {recipe.anchor_loss}, which "
                "needs the probability that each token was sampled with; the teacher of pair "
                f'"{pair}" has sampled other tokens',
                'write anchor_loss = "reverse_kl"',
            )


def check_model(name: str, where: str) -> None:
    """Check that a model is a folder with safetensors, or looks like a Hub model ID.

    Args:
        name: the reference.
        where: the key that has it, for messages.
    """
    try:
        folder = Path(name).expanduser()
        exists, is_folder = folder.exists(), folder.is_dir()
    except (OSError, RuntimeError):  # too long, not allowed, or the ~ of an unknown user
        exists = is_folder = False
    if not exists and _HUB_ID.fullmatch(name):
        return  # only the Hub knows
    if not is_folder:
        raise PotstillError(
            f'{where} = "{brief(name)[1:-1]}" is neither a local folder nor a Hub model ID',
            "give a model folder, a model ID such as Qwen/Qwen3-4B, or name an embedded pair in "
            f"pairs: {', '.join(zoo.PAIRS)}",
        )
    adapter = (folder / "adapter_config.json").is_file()
    if not adapter and not (folder / "config.json").is_file():
        raise PotstillError(
            f'{where} = "{name}" has no config.json',
            "give a transformers model folder, or a LoRA adapter with adapter_config.json",
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth"))
        weights = f"only pickled weights ({pickled[0]})" if pickled else "no weights"
        raise PotstillError(
            f'{where} = "{name}" has {weights}; potstill reads safetensors only',
            "save it again with model.save_pretrained(folder), which writes safetensors",
        )


def check_routes(
    route: str, teachers: Mapping[str, str], task: Task, held_out: Sequence[Problem]
) -> None:
    """Check that every value of the key that selects teachers has one, and that it is used."""
    values = {problem.text(route): problem.id for problem in chain(held_out, task.train)}
    for value, name in values.items():
        if value and value not in teachers:
            raise PotstillError(
                f'{name} has {route} = "{value}", for which there is no teacher',
                did_you_mean(value, teachers, "teachers"),
            )
    if not any(values):
        raise PotstillError(
            f'no problem has the key "{route}" that teachers are chosen by',
            "name a key of the data, or leave route and teachers out",
        )


def check_teachers(where: str, route: str, teachers: Mapping[str, str], engine: str) -> None:
    """Check the further teachers in a pair's table, named `where` in messages."""
    if bool(route) != bool(teachers):
        raise PotstillError(
            f"{where} chooses among several teachers by a key of the data: it has route = "
            f"{route!r} and {len(teachers)} further teachers",
            'write both, for example route = "subject" and teachers = { code = "..." }',
        )
    if teachers and engine != "torch":
        raise PotstillError(
            f'{where} has several teachers, engine "{engine}" holds one', 'use engine = "torch"'
        )
    if bad := [key for key in teachers if not key or ":" in key]:
        raise PotstillError(
            f"{where}.teachers: a value of the key is text without a colon, got {brief(bad[0])}",
            "problems without a value are read by teacher",
        )


def check_alone(study: Study, name: str) -> None:
    """Check that a pair without a teacher asks nothing of one.

    Raises:
        PotstillError: recipes, faults or settings of the pair that need a teacher, all of them.
    """
    pair, table, errors = study.models[name], f"pair.{name}", Errors()
    for key in ("context", "route", "teachers"):
        if getattr(pair, key):
            errors.add(
                PotstillError(
                    f"{table}.{key} is about a teacher, and the pair has none",
                    f"name one, {table}.teacher, or leave {key} out",
                )
            )
    reasons: dict[str, list[str]] = {}
    for recipe in study.recipes.values():
        if need := _needs_teacher(recipe):
            reasons.setdefault(need, []).append(recipe.name)
    for need, names in reasons.items():
        verb = "needs" if len(names) == 1 else "need"
        errors.add(
            PotstillError(
                f'{", ".join(names)} {verb} {need}, and pair "{name}" has no teacher',
                f"name one, {table}.teacher, or train on the completions of the data: methods = "
                '["sft"]',
            )
        )
    if wrong := [fault for fault in study.faults if fault in TEACHERS_FAULTS]:
        errors.add(
            PotstillError(
                f'the fault {wrong[0]} is one of a teacher, and pair "{name}" has none',
                "leave it out",
            )
        )
    errors.check()


def _needs_teacher(recipe: Recipe) -> str:
    """The use that a recipe has for a teacher, in addition to completions; "" for none."""
    if recipe.interleave:
        return "a teacher's ranks of the student's tokens"
    if recipe.uses_student and recipe.student_loss.needs != "tokens":
        return f"a teacher's probabilities of the student's tokens ({recipe.student_loss})"
    if recipe.uses_teacher and recipe.teacher_loss.needs != "tokens":
        return f"a teacher's probabilities of its tokens ({recipe.teacher_loss})"
    return ""


def check_window(
    prompts: PromptBuilder,
    teacher: str,
    held_out: Sequence[Problem],
    max_tokens: int,
    spec: ModelSpec,
) -> None:
    """Check that the teacher's prompts leave room for a completion.

    Args:
        prompts: builds the teacher's prompts.
        teacher: its folder or Hub model ID.
        held_out: problems it completes, in addition to all training problems.
        max_tokens: most tokens of a completion.
        spec: placement of the teacher.
    """
    from potstill.engines.torch.checkpoints import Checkpoint
    from potstill.engines.torch.windows import window_of

    model = Checkpoint.find(teacher, spec.trust_remote_code)
    window = window_of(model.config).tokens
    if not window:
        return  # positions are unlimited
    conversations = (
        (problem.id, prompts.conversation(problem))
        for problem in chain(prompts.task.train, held_out)
    )
    # A token has at least one byte: only those that may be too long are tokenized.
    long = {
        name: messages
        for name, messages in conversations
        if len(plain(messages).encode()) + TEMPLATE * (len(messages) + 1) + max_tokens > window
    }
    if not long:
        return
    lengths = {
        name: len(render(model.tokenizer, messages, spec)) for name, messages in long.items()
    }
    longest = max(lengths, key=lambda name: lengths[name])
    if lengths[longest] + max_tokens > window:
        raise PotstillError(
            f"a context fits the teacher's window: {longest} takes {lengths[longest]} tokens and "
            f"up to {max_tokens} of completion, {teacher} has {window}",
            "show fewer or shorter examples, documents or hints, or lower max_tokens",
        )
