"""Results of pre-flight checks, kept for the same models, settings, versions and device.

A check that passed is not repeated as long as everything that it depends on is the same. The key
has the files of the models, the problems, every file that a setting names, the settings, the
versions of the packages, potstill's own source, and the device; for predicted times the machine as
well. What failed is never kept, because people repair what no key contains. Nothing is kept of a
service, whose weights and version no key can contain, of the fake engine, or of injected faults.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import potstill
from potstill.caches import cache_folder
from potstill.diagnostics.preflight import COST, MEMORY, Check, steps_of
from potstill.digests import file_digest, to_json
from potstill.engines.cached_teacher import fingerprint
from potstill.engines.host import one_of_several
from potstill.errors import PotstillError
from potstill.study.files import write_text
from potstill.study.inputs import grader_identity, problems_digest
from potstill.study.provenance import provenance
from potstill.study.schema import Study
from potstill.study.settling import task_of

# Facts of the provenance that can change a check's result, and those that change times only.
VERSIONS = (
    *("potstill", "torch", "transformers", "tokenizers", "peft", "numpy", "scipy"),
    *("python", "system", "processor"),
)
MACHINE = ("cores",)
TABLES = ("task", "train", "eval", "engine")  # of a study file

log = logging.getLogger(__name__)


def default_folder() -> Path | None:
    """The folder of kept results."""
    return cache_folder("preflight")


def keeper_of(
    study: Study, pair: str, *, repeat: bool = False, folder: Path | None = None
) -> KeptChecks | None:
    """Keeps the checks of one pair; None where nothing may be kept.

    Args:
        study: the settings.
        pair: one of its pairs.
        repeat: use no result, but keep the new ones.
        folder: default: `default_folder()`.
    """
    folder = folder or default_folder()
    if study.engine.name != "torch" or study.faults or folder is None:
        return None
    return KeptChecks(folder, study, pair, repeat)


class KeptChecks:
    """Results of one pair's checks in a folder, one small file each; see `preflight.Keeper`.

    Args:
        folder: may be shared by any studies and processes.
        study, pair, repeat: as for `keeper_of`.
    """

    def __init__(self, folder: Path, study: Study, pair: str, repeat: bool = False) -> None:
        self._folder, self._study, self._pair, self._repeat = folder, study, pair, repeat
        self._common: str | None = None

    def get(self, name: str) -> list[Check] | None:
        """The kept results of a check; None if there are none, or they cannot be read."""
        if self._repeat:
            return None
        try:
            record = json.loads(self.file(name).read_text(encoding="utf-8"))
            if record["sha256"] != _hash([record["date"], to_json(record["checks"])]):
                raise ValueError("its contents have changed")
            checks = [Check(**fields) for fields in record["checks"]]
            note = f"kept from {datetime.datetime.fromisoformat(record['date']):%Y-%m-%d %H:%M}"
            return [check.noted(note) for check in checks]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.info("kept check %s of %s cannot be read: %s", name, self._pair, error)
            return None

    def put(self, name: str, checks: Sequence[Check]) -> None:
        """Keep the results of a check; if it failed, remove what is kept of it."""
        file = self.file(name)
        try:
            if any(check.status == "refused" for check in checks):
                file.unlink(missing_ok=True)
                return
            date = datetime.datetime.now().isoformat(timespec="seconds")
            results = json.loads(to_json([asdict(check) for check in checks]))
            sha256 = _hash([date, to_json(results)])
            record = {"name": name, "date": date, "sha256": sha256, "checks": results}
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, to_json(record) + "\n")
        except (OSError, PotstillError) as error:  # the checks themselves are done
            log.info("check %s of %s is not kept: %s", name, self._pair, error)

    def file(self, name: str) -> Path:
        """The file of a check."""
        parts: list[object] = [self._shared(), name]
        recipes = self._study.recipes
        if name in (COST, MEMORY):
            facts = provenance()
            threads = os.environ.get("OMP_NUM_THREADS", "")
            parts += [platform.node(), [facts[fact] for fact in MACHINE], threads]
            parts += [[repr(recipe) for recipe in recipes.values()], len(self._study.seeds)]
        else:
            parts += [repr(r) for r in recipes.values() if name == steps_of(r)]
        key = _hash(parts)
        return self._folder / key[:2] / f"{key}.json"

    def _shared(self) -> str:
        """The part of the key that all checks of the pair have."""
        if self._common is None:
            study = self._study
            pair, table = study.models[self._pair], study.to_toml()
            settings = {name: table.get(name) for name in TABLES}
            models = filter(None, (pair.student, pair.teacher, *pair.teachers.values()))
            facts = provenance()
            self._common = _hash(
                [
                    pair.model_dump(mode="json"),
                    [(fingerprint(model), _revision(model)) for model in models],
                    settings,
                    sorted(_files([settings, pair.context])),
                    _problems(study),
                    study.seeds[0],
                    [facts[fact] for fact in VERSIONS],
                    _source(),
                    _devices(),
                    os.environ.get("WORLD_SIZE") if one_of_several() else "",
                ]
            )
        return self._common


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _problems(study: Study) -> tuple[str, str, str]:
    """Digests of all problems of the task, wherever they come from, and of its grader."""
    task = task_of(study)
    return problems_digest(task.train), problems_digest(task.test), grader_identity(task)


def _files(value: object) -> Iterator[tuple[str, str]]:
    """Name and hash of every file that a setting names."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _files(inner)
    elif isinstance(value, str) and 0 < len(value) < 1024 and "\n" not in value:
        path = Path(value).expanduser() if value.startswith("~/") else Path(value)
        if path.is_file():
            yield value, str(file_digest(path))


def _revision(model: str) -> str:
    """The revision of a hub model that is on this machine; "" for a folder.

    As long as it is unknown, the result is another one each time, so that no key is found again.
    """
    if Path(model).exists():
        return ""
    from huggingface_hub import try_to_load_from_cache

    try:
        path = try_to_load_from_cache(model, "config.json")
    except ValueError:  # not the name of a model
        path = None
    return path if isinstance(path, str) else os.urandom(16).hex()


@lru_cache(1)
def _source() -> str:
    """A hash of potstill's own modules, which an installation may have changed."""
    root, hasher = Path(potstill.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        hasher.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return hasher.hexdigest()


@lru_cache(1)
def _devices() -> list[str]:
    """The accelerators that this process can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
