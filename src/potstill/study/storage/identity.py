"""The digest of the settings that one run is executed with.

Every record carries it, so that runs with other settings are never averaged as if they were
seeds of one method.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from potstill.digests import digest_of
from potstill.study.paths import earlier_tables
from potstill.study.schema import Study
from potstill.study.storage.keys import REFERENCES, RunId

# Costs, where runs are executed and who is sent their metrics: none of it changes a number.
NEUTRAL = ("price", "budget", "ray", "track", "published")
GROWING = ("methods", "pairs", "seeds")  # may gain values and lose none
NAMED = ("pair", "recipe")  # tables of named tables; names may be added
_UNUSED = {"name", *NEUTRAL, *GROWING, *NAMED}
# Settings inside tables: what is kept on disk, and how often progress is looked at.
_KEPT = {
    "train": ("save", "save_every", "keep_state", "checkpoint_every"),
    "eval": ("examples",),
}
_LOOKS = {"eval": (*_KEPT["eval"], "every", "probe_every")}


def neutral_fields(settings: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Settings inside tables that change no number, by table.

    A run that acts on a collapse depends on the steps at which it looks for one, and on the
    checkpoints that it can go back to.

    Args:
        settings: the table of a study; defaults may be left out.
    """
    train = settings.get("train")
    action = (train if isinstance(train, Mapping) else {}).get("on_collapse", "warn")
    if action == "warn":
        return {**_KEPT, **_LOOKS}
    train_fields = tuple(name for name in _KEPT["train"] if name != "checkpoint_every")
    return {**_KEPT, "train": train_fields}


def settings_digest(study: Study, run: RunId) -> str:
    """The digest of all settings that can change a number of the run.

    Settings with their defaults are left out: a setting that a later version adds leaves the
    digests of earlier runs as they are.
    """
    return _digest(study, run, study.model_dump(mode="json", exclude_defaults=True))


def is_digest_of(digest: str, study: Study, run: RunId) -> bool:
    """True for the digest of the settings, or that of a version before.

    Earlier versions kept paths as they were written, and counted every field of a table.
    """
    table = study.model_dump(mode="json", exclude_defaults=True)
    return any(
        digest == _digest(study, run, one, every_field=every_field)
        for one in (table, *earlier_tables(table))
        for every_field in (False, True)
    )


def _digest(study: Study, run: RunId, changed: dict[str, Any], *, every_field: bool = False) -> str:
    used = {key: value for key, value in changed.items() if key not in _UNUSED}
    for table, fields in ({} if every_field else neutral_fields(used)).items():
        rest = {k: v for k, v in used.pop(table, {}).items() if k not in fields}
        used |= {table: rest} if rest else {}
    used["engine"] = {**used.get("engine", {}), "name": study.engine.name}
    used["pair"] = changed.get("pair", {}).get(run.pair, run.pair)
    if run.method not in REFERENCES:
        used["recipe"] = _recipe(changed.get("recipe", {}), run.method)
    return digest_of(json.dumps(used, sort_keys=True))


def _recipe(tables: dict[str, dict[str, Any]], name: str) -> list[Any]:
    """A recipe's table and those that it is derived from, down to a built-in method."""
    chain: list[Any] = []
    while name in tables:
        chain.append(tables[name])
        name = str(tables[name].get("from", ""))
    return [*chain, name]
