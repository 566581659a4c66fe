"""The inputs of a study: digests of its problems, its grader, its models and their contexts.

Settings name files and models; the numbers depend on their contents. A study's folder has the
digests of the first run, in inputs.json, and every record has those of its own run. Other problems
or models are refused like other settings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from potstill.caches import cache_folder
from potstill.digests import DIGITS, digest_of, file_digest
from potstill.engines.model_digest import model_digest
from potstill.fields import brief
from potstill.problems import Problem
from potstill.study.benchmarks import is_file
from potstill.study.schema import Study
from potstill.tasks import Task
from potstill.tasks.context.builder import PromptBuilder
from potstill.training.completing import held_out

LOCAL = ("torch",)  # engines whose models are files


@runtime_checkable
class Digested(Protocol):
    """Problems that know their digest."""

    @property
    def digest(self) -> str:
        """The digest of all of them, in their order."""


@dataclass(frozen=True)
class Inputs:
    """Digests of a study's inputs.

    Args:
        data: of "training problems", "graded problems" and, if it has files, the "grader".
        models: by pair and role, and of the files of its teacher's "context"; a model without a
            digest is left out.
    """

    data: Mapping[str, str]
    models: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def digest(self, pair: str) -> str:
        """The digest of everything that the runs of a pair depend on."""
        return digest_of(repr((sorted(self.data.items()), sorted(self.models[pair].items()))))

    def changes(self, stored: Inputs) -> list[str]:
        """The names of what differs from stored inputs; pairs may be added."""
        names = sorted(self.data.keys() | stored.data.keys())
        changed = [name for name in names if self.data.get(name) != stored.data.get(name)]
        for pair in sorted(self.models.keys() & stored.models.keys()):
            now, then = self.models[pair], stored.models[pair]
            known = sorted(now.keys() & then.keys())
            changed += [f"{role} of {pair}" for role in known if now[role] != then[role]]
        return changed

    def with_pairs_of(self, stored: Inputs | None) -> Inputs:
        """These inputs, and the models of pairs that only `stored` has."""
        return Inputs(self.data, {**stored.models, **self.models}) if stored else self

    def to_record(self) -> dict[str, Any]:
        """The record that `from_record` reads."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Inputs:
        """Read a record.

        Raises:
            ValueError: it is none of inputs.
        """
        data, models = record.get("data"), record.get("models")
        tables = [data, *models.values()] if isinstance(models, Mapping) else [None]
        for table in tables:
            values = table.values() if isinstance(table, Mapping) else [None]
            if not all(isinstance(value, str) for value in values):
                raise ValueError(f"digests are texts by name, got {brief(table)}")
        assert isinstance(data, Mapping) and isinstance(models, Mapping)
        return cls(dict(data), {pair: dict(roles) for pair, roles in models.items()})


def inputs_of(study: Study, task: Task, pairs: Iterable[str] | None = None) -> Inputs:
    """Compute the digests of a study's inputs.

    Args:
        study: the settings.
        task: its task; the problems are read.
        pairs: those whose models are read; default: all.

    Raises:
        PotstillError: a model's file cannot be read.
    """
    data = {
        "training problems": problems_digest(task.train),
        "graded problems": problems_digest(held_out(task, study.eval)),
    }
    if validation := getattr(task, "validation", ()):
        data["validation problems"] = problems_digest(validation)
    if identity := grader_identity(task):
        data["grader"] = digest_of(identity)
    files = {f"lm-eval task {Path(n).name}": n for n in study.eval.lm_eval if is_file(n)}
    files |= {"text of eval.drift": study.eval.drift} if study.eval.drift else {}
    data |= {name: str(file_digest(Path(path).expanduser())) for name, path in files.items()}
    models = {}
    for name in study.models if pairs is None else pairs:
        pair = study.models[name]
        roles = {"student": pair.student, "teacher": pair.teacher}
        roles |= {f"teacher:{key}": model for key, model in pair.teachers.items()}
        local = {role: model for role, model in roles.items() if model}
        digests = _model_digests(local) if study.engine.name in LOCAL else {}
        if (context := study.contexts.get(name)) and (
            contents := PromptBuilder(context, task).contents
        ):
            digests["context"] = digest_of(repr(contents))
        models[name] = {role: digest for role, digest in digests.items() if digest}
    return Inputs(data, models)


def _model_digests(models: Mapping[str, str]) -> dict[str, str]:
    kept = cache_folder("digests")
    known = {model: model_digest(model, kept) for model in dict.fromkeys(models.values())}
    return {role: known[model] for role, model in models.items()}


def grader_identity(task: Task) -> str:
    """The identity of a task's grader, see `tasks.graders`; "" for a task with one of its own."""
    return str(getattr(getattr(task, "graded_by", None), "identity", ""))


def problems_digest(problems: Sequence[Problem]) -> str:
    """The digest of problems in their order, with everything that a run can read of them."""
    if isinstance(problems, Digested):
        return digest_of(problems.digest)
    hasher = hashlib.sha256()
    for p in problems:
        extra = sorted(p.extra.items())
        parts = (p.question, p.answer, p.solution, extra, p.messages, p.completions)
        hasher.update(repr(parts).encode("utf-8", "backslashreplace"))
    return hasher.hexdigest()[:DIGITS]
