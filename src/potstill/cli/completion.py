"""Shell completion: names that a word on the command line may have.

Each function takes what is typed so far; typer leaves out what does not begin with it. They read
tables of names and open no model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def words(incomplete: str) -> list[str]:
    """Study files of the folder that is typed, and keys of a study."""
    place = Path(incomplete)
    folder = place if incomplete.endswith("/") else place.parent
    files = [str(path) for path in sorted(folder.glob("*.toml"))] if folder.is_dir() else []
    return files + ([] if "/" in incomplete else list(keys()))


def keys() -> Iterable[str]:
    """Keys of a study with their "=", those of its tables in full."""
    from pydantic import BaseModel

    from potstill.study.schema import Study

    for name, field in Study.model_fields.items():
        part = field.annotation
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield from (f"{name}.{inner}=" for inner in part.model_fields)
        else:
            yield f"{name}="


def methods() -> list[str]:
    from potstill.algorithms.methods import KNOWN

    return list(KNOWN)


def pairs() -> list[tuple[str, str]]:
    from potstill.engines.zoo import PAIRS

    return list(PAIRS.items())


def models() -> list[str]:
    """Embedded models."""
    return [f"{pair}/{role}" for pair, _ in pairs() for role in ("student", "teacher")]


def tasks() -> list[tuple[str, str]]:
    from potstill.tasks import TASKS

    return [(name, summary) for name, (_, _, summary) in TASKS.items()]


def trackers() -> list[tuple[str, str]]:
    from potstill.study.tracking.registry import TRACKERS

    return [(name, info.summary) for name, info in TRACKERS.items()]


def places() -> list[str]:
    return ["local", "ray", "ray://"]


def roles() -> list[str]:
    return ["student", "teacher", "both"]


def dtypes() -> list[str]:
    return ["float32", "bfloat16", "float16"]
