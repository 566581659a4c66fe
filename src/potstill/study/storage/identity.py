"""The digest of the settings that one run is executed with.

Every record carries it, so that runs with other settings are never averaged as if they were
seeds of one method.
"""

from __future__ import annotations

import json
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


def settings_digest(study: Study, run: RunId) -> str:
    """The digest of all settings that can change a number of the run.

    Settings with their defaults are left out: a setting that a later version adds leaves the
    digests of earlier runs as they are.
    """
    return _digest(study, run, study.model_dump(mode="json", exclude_defaults=True))


def is_digest_of(digest: str, study: Study, run: RunId) -> bool:
    """True for the digest of the settings, or of those with paths that were kept as written."""
    if digest == settings_digest(study, run):
        return True
    table = study.model_dump(mode="json", exclude_defaults=True)
    return any(digest == _digest(study, run, earlier) for earlier in earlier_tables(table))


def _digest(study: Study, run: RunId, changed: dict[str, Any]) -> str:
    used = {key: value for key, value in changed.items() if key not in _UNUSED}
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
