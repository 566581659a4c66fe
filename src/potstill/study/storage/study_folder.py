"""The folder of a whole study: its settings, its runs by key, and the cost that was predicted."""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock
import tomli_w
from pydantic import ValidationError

from potstill.digests import digest_of
from potstill.errors import Errors, PotstillError, writing
from potstill.study.budget import Ledger
from potstill.study.file_schemas import SpentRecord, checked
from potstill.study.files import damaged, read_record, read_text, write_record, write_text
from potstill.study.inputs import Inputs
from potstill.study.paths import as_now
from potstill.study.provenance import provenance
from potstill.study.schema import Study
from potstill.study.storage.identity import GROWING, NAMED, NEUTRAL, is_digest_of, neutral_fields
from potstill.study.storage.keys import RunId
from potstill.study.storage.run_folder import RunFolder
from potstill.training.spending import Spent

INPUTS = "inputs.json"
OTHER_OUT = "use another --out"
PATIENCE = 30  # seconds to wait for another process that opens the same folder


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
        """The table in study.toml; None in a new folder.

        Raises:
            DamagedFile: it cannot be read.
        """
        text = read_text(self._file, OTHER_OUT) if self.path.is_dir() else None
        if text is None:
            return None
        try:
            return tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise damaged(self._file, error, OTHER_OUT) from None

    @property
    def _file(self) -> Path:
        return self.path / "study.toml"

    @property
    def study(self) -> Study:
        """The study in study.toml.

        Raises:
            PotstillError: there is none, or another version of potstill wrote it.
        """
        return self.read()[0]

    def read(self) -> tuple[Study, dict[str, str]]:
        """The study in study.toml, and the provenance with which it was opened.

        Raises:
            PotstillError: there is none, it was changed, or another version of potstill wrote it.
        """
        table = self.settings
        if table is None:
            raise PotstillError(
                f'"{self.path}" holds no study', "give a folder that `potstill study` wrote"
            )
        facts = table.pop("provenance", None)
        if not isinstance(facts, Mapping):  # every version writes it
            raise damaged(self._file, "it has no [provenance]", OTHER_OUT)
        facts = dict(facts)
        written = facts.pop("digest", None)
        if written is not None and written != _digest(self._file.read_text(encoding="utf-8")):
            raise damaged(
                self._file,
                "it has changed since potstill wrote it",
                f'undo the change, or run `potstill study FILE --out "{self.path}"` with the '
                "settings that you want",
            )
        try:
            return Study.model_validate(table), facts
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise PotstillError(
                f'"{self._file}": {key}: {first["msg"]}', "it was written by another version"
            ) from None

    def open(self, study: Study, inputs: Inputs | None = None) -> None:
        """Use the folder for this study; the grid may grow, other settings may not change.

        Args:
            study: the settings.
            inputs: digests of its problems and models; None: they are not checked.

        Raises:
            PotstillError: the folder has a study with other settings, problems or models, or is not
                writable.
        """
        self.check(study, inputs)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / ".lock", timeout=PATIENCE)
        try:
            with writing(self.path), lock:
                self.check(study, inputs)  # again: of two that start at once, both found it empty
                settings = tomli_w.dumps(study.to_toml())
                facts = {**provenance(), "digest": digest_of(settings)}
                write_text(self._file, f"{settings}{_PROVENANCE}{tomli_w.dumps(facts)}")
                if inputs:
                    whole = inputs.with_pairs_of(self.inputs)
                    write_record(self.path / INPUTS, whole.to_record())
        except filelock.Timeout:
            raise PotstillError(
                f'another process has been opening "{self.path}" for {PATIENCE} s',
                "wait until it has ended, or use another --out",
            ) from None

    @property
    def inputs(self) -> Inputs | None:
        """The inputs of the study; None if a version without them wrote the folder.

        Raises:
            DamagedFile: they cannot be read.
        """
        path = self.path / INPUTS
        hint = f'remove "{path}": the next run writes it again, and the records have its digests'
        stored = read_record(path, hint)
        try:
            return Inputs.from_record(stored[0]) if stored else None
        except ValueError as error:
            raise damaged(path, error, hint) from None

    def check_inputs(self, inputs: Inputs) -> None:
        """Raise if the study began with other problems or models."""
        if (stored := self.inputs) and (changes := inputs.changes(stored)):
            raise PotstillError(
                f'"{self.path}" holds a study of other inputs: changed since are '
                f"{', '.join(changes)}",
                "use another --out, or bring back the files of then",
            )

    def check(self, study: Study, inputs: Inputs | None = None) -> None:
        """Raise what `open` would raise, without changing the folder."""
        # before the settings: another process may be opening the folder at this moment
        occupied = self.path.is_dir() and any(
            not path.name.startswith(".") for path in self.path.iterdir()
        )
        stored = self.settings
        if stored is None and occupied:
            raise PotstillError(f'"{self.path}" is not empty and not a study folder', OTHER_OUT)
        if stored is not None:
            stored.pop("provenance", None)
            current = study.to_toml()
            self._check_settings(_as_today(_with_defaults(stored), current), current)
            if inputs:
                self.check_inputs(inputs)
        existing = next(path for path in (self.path, *self.path.parents) if path.exists())
        with writing(self.path), tempfile.TemporaryDirectory(dir=existing, prefix=".potstill-"):
            pass

    def _check_settings(self, stored: dict[str, Any], current: dict[str, Any]) -> None:
        if changes := changes_between(stored, current):
            raise PotstillError(
                f'"{self.path}" holds a study with other settings ({"; ".join(changes)})',
                "use another --out, or the settings of its study.toml; adding methods, pairs and "
                "seeds is fine",
            )

    @property
    def predicted(self) -> dict[str, dict[str, Spent]]:
        """Predicted cost of a run by pair and method; empty if pre-flight was skipped."""
        path = self.path / "predicted.json"
        hint = f'remove "{path}": the next pre-flight writes it again'
        stored, _ = read_record(path, hint) or ({}, True)
        try:
            return {
                pair: {
                    method: Spent.read(checked(SpentRecord, cost, path, hint))
                    for method, cost in costs.items()
                }
                for pair, costs in stored.items()
            }
        except AttributeError:
            raise damaged(path, "a pair has no table", hint) from None

    @predicted.setter
    def predicted(self, costs: Mapping[str, Mapping[str, Spent]]) -> None:
        table = {
            pair: {method: asdict(cost) for method, cost in by_method.items()}
            for pair, by_method in costs.items()
        }
        write_record(self.path / "predicted.json", table)

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
        return RunFolder(self.path / "cells" / str(key), teacher, examples, ledger, key)

    def results(
        self, keys: Sequence[RunId], study: Study | None = None
    ) -> dict[RunId, dict[str, Any]]:
        """Records of those runs that have ended, in the given order.

        Args:
            keys: the runs.
            study: refuse a record of other settings, and files that its run did not end with.

        Raises:
            PotstillError: records that cannot be used, all of them.
        """
        results, errors = {}, Errors()
        stored = self.inputs if study is not None else None
        expected = {pair: stored.digest(pair) for pair in stored.models} if stored else {}
        for key in keys:
            with errors:
                run = self.cell(key)
                if (record := run.result) is not None:
                    results[key] = record
                    if study is not None:
                        _check_settings_of(record, run, study, key)
                        _check_inputs_of(record, run, key.pair, expected)
                        run.check_files(record)
        errors.check()
        return results


def _check_inputs_of(
    record: Mapping[str, Any], run: RunFolder, pair: str, expected: dict[str, str]
) -> None:
    """Check a record's problems and models; those of the first one where none are expected."""
    inputs = record.get("inputs")
    if inputs and expected.setdefault(pair, inputs) != inputs:
        raise PotstillError(
            f'"{run.path}" was run on other problems or models than the rest of the study', run.hint
        )


def _check_settings_of(record: Mapping[str, Any], run: RunFolder, study: Study, key: RunId) -> None:
    if "settings" in record and not is_digest_of(record["settings"], study, key):
        raise PotstillError(
            f'"{run.path}" was run with other settings than its study.toml has now', run.hint
        )


_PROVENANCE = "\n[provenance]\n"


def _digest(text: str) -> str:
    """The digest of the settings in a study.toml, which are above its provenance."""
    return digest_of(text.rpartition(_PROVENANCE)[0])


def _with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Stored settings with the defaults of fields that were added since."""
    try:
        return Study.model_validate(settings).to_toml()
    except ValueError:
        return settings  # a field was removed: the comparison names it


def _as_today(stored: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """Stored settings with today's name of what has not changed.

    Attention "sdpa" was the default, and is what "auto" chooses wherever "sdpa" exists. Paths were
    kept as they were written, and are absolute now.
    """
    engine, now = dict(stored.get("engine") or {}), current.get("engine") or {}
    for role in ("student", "teacher"):
        old, new = engine.get(role), now.get(role)
        if isinstance(old, dict) and isinstance(new, dict):
            pair = (old.get("attention"), new.get("attention"))
            if pair == ("sdpa", "auto"):
                engine[role] = {**old, "attention": "auto"}
    return as_now({**stored, "engine": engine} if engine else stored, current)


def changes_between(stored: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Differences between two studies' settings that would change a number."""
    changes, neutral = [], neutral_fields(current)
    for key in sorted((stored.keys() | current.keys()) - set(NEUTRAL)):
        old, new = stored.get(key), current.get(key)
        if key in GROWING:
            lost = [value for value in _listed(old) if value not in _listed(new)]
            changes += [f"{key} lost {lost}"] if lost else []
        elif key in NAMED:
            before, after = (table if isinstance(table, dict) else {} for table in (old, new))
            changes += [f"{key}.{name}" for name in before if after.get(name) != before[name]]
        elif isinstance(old, dict) and isinstance(new, dict):
            used = (old.keys() | new.keys()) - {*neutral.get(key, ())}
            fields = sorted(field for field in used if old.get(field) != new.get(field))
            changes += [f"{key}.{field}: {old.get(field)} -> {new.get(field)}" for field in fields]
        elif old != new and key != "name":
            changes.append(f"{key}: {old} -> {new}")
    return changes


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
