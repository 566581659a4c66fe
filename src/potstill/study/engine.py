"""Opens the engine of a run: the study's engine settings, its pair, and the teacher cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.diagnostics import faults
from potstill.engines.cached_teacher import CachedTeacher, fingerprint
from potstill.engines.protocol import Engine
from potstill.engines.registry import open_engine
from potstill.settings import Adam, Lora
from potstill.study.schema import Study
from potstill.study.storage import RunId
from potstill.tasks import Task


def engine_settings(study: Study) -> dict[str, Any]:
    """Keyword arguments of the study's engine, in addition to the pair and the seed."""
    train = study.train
    adam = {} if train.adam == Adam() else {"adam": train.adam}
    if study.engine.name == "fake":
        return adam
    lora = Lora(
        rank=train.lora_rank,
        alpha=train.lora_alpha,
        dropout=train.lora_dropout,
        target=train.lora_target,
    )
    return {
        "settings": study.engine,
        **({"lora": lora} if study.engine.name == "torch" else {}),
        "lora_rank": train.lora_rank,
        "max_grad_norm": train.max_grad_norm,
        **adam,
    }


def open_study_engine(
    study: Study, key: RunId, task: Task, scratch: Path, cache: Path | None = None
) -> Engine:
    """Open the engine of one run.

    Args:
        study: the settings.
        key: the run.
        task: the problems that the pair's context and its choice of teachers depend on.
        scratch: a folder for teachers that a fault modifies.
        cache: a folder for teacher completions; None, or no teacher: they are not cached.
    """
    pair, name = study.models[key.pair], study.engine.name
    teacher = pair.teacher and faults.teacher_for(study.faults, pair.teacher, scratch)
    models = pair.model_copy(update={"teacher": teacher, "context": study.contexts.get(key.pair)})
    engine = open_engine(name, models, seed=key.seed or 0, task=task, **engine_settings(study))
    if note := getattr(task, "note", ""):
        engine.notes = (*engine.notes, note)
    if cache is None or not teacher:
        return engine
    # The student matters as well: token ids that both heads have, and what ends a completion.
    parts: tuple[Any, ...] = (pair.student, sorted(engine.eos))
    parts += (getattr(study.engine, "teacher", None),)
    parts += tuple((value, fingerprint(model)) for value, model in sorted(pair.teachers.items()))
    parts += (getattr(study.engine, "sample_tokens", None),)
    return CachedTeacher(engine, fingerprint(teacher, name, *parts), cache)
