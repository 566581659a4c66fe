"""The folder of a whole study: its settings, its runs by key, and the cost that was predicted."""

from __future__ import annotations

import json
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from potstill.errors import PotstillError, writing
from potstill.study.budget import Ledger
from potstill.study.files import to_json, write_text
from potstill.study.provenance import provenance
from potstill.study.schema import Study
from potstill.study.storage.keys import RunId
from potstill.study.storage.run_folder import RunFolder
from potstill.training.spending import Spent

# Costs, where runs are executed and who is sent their metrics: none of it changes a number.
NEUTRAL = ("price", "budget", "ray", "track", "published")
GROWING = ("methods", "pairs", "seeds")  # may gain values and lose none
NAMED = ("pair", "recipe")  # tables of named tables; names may be added


class StudyFolder:
    """A study's folder.

    Args:
        path: the folder.
        cache: teacher completions, if studies share them; default: .cache in the folder.
    """

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        self.path = Path(path)
        self.cache = cache or self.path / ".cache"

    @property
    def settings(self) -> dict[str, Any] | None:
        """The table in study.toml; None in a new folder."""
        file = self.path / "study.toml"
        if not file.exists():
            return None
        try:
            return tomllib.loads(file.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise PotstillError(f'"{file}" is damaged: {error}', "use another --out") from None

    @property
    def study(self) -> Study:
        """The study in study.toml.

        Raises:
            PotstillError: there is none, or another version of potstill wrote it.
        """
        table = self.settings
        if table is None:
            raise PotstillError(
                f'"{self.path}" holds no study', "give a folder that `potstill study` wrote"
            )
        table.pop("provenance", None)
        try:
            return Study.model_validate(table)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise PotstillError(
                f'"{self.path}/study.toml": {key}: {first["msg"]}',
                "it was written by another version",
            ) from None

    def open(self, study: Study) -> None:
        """Use the folder for this study; the grid may grow, other settings may not change.

        Raises:
            PotstillError: the folder has a study with other settings, or is not writable.
        """
        self.check(study)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        text = tomli_w.dumps({**study.to_toml(), "provenance": provenance()})
        write_text(self.path / "study.toml", text)

    def check(self, study: Study) -> None:
        """Raise what `open` would raise, without changing the folder."""
        # before the settings: another process may be opening the folder at this moment
        occupied = self.path.is_dir() and any(
            not path.name.startswith(".") for path in self.path.iterdir()
        )
        stored = self.settings
        if stored is None and occupied:
            raise PotstillError(
                f'"{self.path}" is not empty and not a study folder', "use another --out"
            )
        if stored is not None:
            stored.pop("provenance", None)
            current = study.to_toml()
            self._check_settings(_as_today(_with_defaults(stored), current), current)
        existing = next(path for path in (self.path, *self.path.parents) if path.exists())
        with writing(self.path), tempfile.TemporaryDirectory(dir=existing, prefix=".potstill-"):
            pass

    def _check_settings(self, stored: dict[str, Any], current: dict[str, Any]) -> None:
        if changes := _changes(stored, current):
            raise PotstillError(
                f'"{self.path}" holds a study with other settings ({"; ".join(changes)})',
                "use another --out, or the settings of its study.toml; adding methods, pairs and "
                "seeds is fine",
            )

    @property
    def predicted(self) -> dict[str, dict[str, Spent]]:
        """Predicted cost of a run by pair and method; empty if pre-flight was skipped."""
        try:
            stored = json.loads((self.path / "predicted.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return {
            pair: {method: Spent.read(cost) for method, cost in costs.items()}
            for pair, costs in stored.items()
        }

    @predicted.setter
    def predicted(self, costs: Mapping[str, Mapping[str, Spent]]) -> None:
        table = {
            pair: {method: asdict(cost) for method, cost in by_method.items()}
            for pair, by_method in costs.items()
        }
        write_text(self.path / "predicted.json", to_json(table) + "\n")

    def ledger(self, study: Study, elsewhere: Callable[[], str] = str) -> Ledger:
        """The account of the study's runs against its budget; `elsewhere` as for `Ledger`."""
        return Ledger(self.path / "cells", study.budget, study.price, elsewhere)

    def cell(
        self,
        key: RunId,
        teacher: Mapping[str, str] | None = None,
        examples: int = 4,
        ledger: Ledger | None = None,
    ) -> RunFolder:
        """The folder of one run; the options are those of `RunFolder`."""
        return RunFolder(self.path / "cells" / str(key), teacher, examples, ledger)

    def results(self, keys: Sequence[RunId]) -> dict[RunId, dict[str, Any]]:
        """Records of those runs that have ended, in the given order."""
        results = {key: self.cell(key).result for key in keys}
        return {key: result for key, result in results.items() if result is not None}


def _with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Stored settings with the defaults of fields that were added since."""
    try:
        return Study.model_validate(settings).to_toml()
    except ValueError:
        return settings  # a field was removed: the comparison names it


def _as_today(stored: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """Stored settings with today's name of what has not changed.

    Attention "sdpa" was the default, and is what "auto" chooses wherever "sdpa" exists.
    """
    engine, now = dict(stored.get("engine") or {}), current.get("engine") or {}
    for role in ("student", "teacher"):
        old, new = engine.get(role), now.get(role)
        if isinstance(old, dict) and isinstance(new, dict):
            pair = (old.get("attention"), new.get("attention"))
            if pair == ("sdpa", "auto"):
                engine[role] = {**old, "attention": "auto"}
    return {**stored, "engine": engine} if engine else stored


def _changes(stored: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Differences between two studies' settings that would change a number."""
    changes = []
    for key in sorted((stored.keys() | current.keys()) - set(NEUTRAL)):
        old, new = stored.get(key), current.get(key)
        if key in GROWING:
            lost = [value for value in old or [] if value not in (new or [])]
            changes += [f"{key} lost {lost}"] if lost else []
        elif key in NAMED:
            names = old or {}
            changes += [f"{key}.{name}" for name in names if (new or {}).get(name) != names[name]]
        elif isinstance(old, dict) and isinstance(new, dict):
            fields = sorted(f for f in old.keys() | new.keys() if old.get(f) != new.get(f))
            changes += [f"{key}.{field}: {old.get(field)} -> {new.get(field)}" for field in fields]
        elif old != new and key != "name":
            changes.append(f"{key}: {old} -> {new}")
    return changes
