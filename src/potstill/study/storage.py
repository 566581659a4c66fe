"""A study's folder on disk, and reading it back.

    study.toml                          settings with every default, provenance
    cells/PAIR/METHOD/SEED/             one cell; reference rows have SEED = "all"
        metrics.jsonl                   one line a step, no clock times: equal runs give equal files
        examples.jsonl                  texts of gradings
        findings.json                   what went wrong, written as it is found
        .spent                          seconds and tokens so far, where the study has a budget
        result.json                     written last, whole or not at all
        checkpoints/                    resume points, gone when the cell ends
        student/                        the trained model
        tracking/NAME.json              what a tracker has of it, and what went wrong
    track/NAME/                         files of trackers that write here
    predicted.json                      what pre-flight said the runs would take
    results.json  table.csv  report.html

Files that are read as a whole are written under another name and renamed; of files that grow,
only whole lines are read. A lock per cell, which dies with its process, keeps two processes off
the same cell.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import tomli_w

from potstill.errors import PotstillError, writing
from potstill.study.budget import Ledger
from potstill.study.provenance import provenance
from potstill.study.schema import Study
from potstill.training.spending import Spent
from potstill.types import Evaluation

REFERENCES = ("untrained", "teacher")
ALL_SEEDS = "all"


@dataclass(frozen=True, order=True)
class Cell:
    """One run of a study; reference rows have no seed."""

    pair: str
    method: str
    seed: int | None = None

    def __str__(self) -> str:
        seed = ALL_SEEDS if self.seed is None else self.seed
        return f"{self.pair}/{self.method}/{seed}"


def write_text(path: Path, text: str) -> None:
    """Replace a file whole, or leave it as it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path), partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def to_json(value: Any) -> str:
    """JSON text of a record; numbers that are not finite become null."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON Lines file that may still be growing."""
    if not path.exists():
        return []
    *whole, _torn = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in whole]
    except json.JSONDecodeError as error:
        raise PotstillError(
            f'"{path}" is damaged: {error}',
            f'remove the folder "{path.parent}" to run its cell again',
        ) from None


class Lines:
    """The rows of a growing file, each once; all of them again where it was replaced."""

    def __init__(self, path: Path) -> None:
        self._path, self._inode, self._offset = path, -1, 0

    def new(self) -> list[dict[str, Any]]:
        """Whole lines since the last call."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            state = os.fstat(file.fileno())
            if state.st_ino != self._inode or state.st_size < self._offset:
                self._inode, self._offset = state.st_ino, 0
            file.seek(self._offset)
            whole, _, _torn = file.read().rpartition(b"\n")
        self._offset += len(whole) + 1 if whole else 0
        return [json.loads(line) for line in whole.split(b"\n") if line]


class CellFolder:
    """One cell's folder; the recorder that the loop writes to."""

    def __init__(
        self,
        path: Path,
        teacher: Mapping[str, str] | None = None,
        examples: int = 4,
        ledger: Ledger | None = None,
    ) -> None:
        self.path = path
        self.checkpoints: Path | None = path / "checkpoints"
        self.teacher, self.examples, self.ledger = teacher or {}, examples, ledger

    @property
    def result(self) -> dict[str, Any] | None:
        """The cell's result, if it has ended."""
        path = self.path / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_lines(self.path / "metrics.jsonl")

    @property
    def steps(self) -> int:
        """Steps recorded so far, read cheaply: one whole line each, and one for step 0."""
        path = self.path / "metrics.jsonl"
        return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0

    @property
    def texts(self) -> list[dict[str, Any]]:
        return read_lines(self.path / "examples.jsonl")

    @contextlib.contextmanager
    def claim(self) -> Iterator[bool]:
        """Hold the cell for this process; yields False where another one holds it."""
        lock = filelock.FileLock(self.path / ".lock")
        try:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                lock.acquire(blocking=False)
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def mark_running(self, running: bool) -> None:
        """Note which process works here, for the live view and for the study that started it."""
        mark = self.path / ".running"
        if running:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            write_text(mark, to_json({"pid": os.getpid(), "host": platform.node()}))
        else:
            mark.unlink(missing_ok=True)

    @property
    def running(self) -> dict[str, Any] | None:
        """The process that works here: pid and host."""
        try:
            return json.loads((self.path / ".running").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def rewind(self, step: int) -> None:
        for name in ("metrics.jsonl", "examples.jsonl"):
            path = self.path / name
            kept = [row for row in read_lines(path) if row["step"] <= step]
            write_text(path, "".join(to_json(row) + "\n" for row in kept))

    def record(self, metrics: dict[str, Any], evaluation: Evaluation | None) -> None:
        if evaluation:
            rows = evaluation.rows[: self.examples]
            self.show([self._example(metrics["step"], row) for row in rows])
        self._append("metrics.jsonl", [{"step": metrics["step"], **metrics}])

    def spend(self, state: Mapping[str, Mapping[str, float]]) -> str:
        if self.ledger is None:
            return ""
        with writing(self.path):
            return self.ledger.charge(
                self.path, Spent(sum(state["seconds"].values()), state["tokens"])
            )

    def note(self, findings: Sequence[Any]) -> None:
        """Keep what is found to be wrong so far, written when it changes."""
        text = to_json([asdict(finding) for finding in findings]) + "\n"
        path = self.path / "findings.json"
        if text != (path.read_text(encoding="utf-8") if path.exists() else "[]\n"):
            write_text(path, text)

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What is found to be wrong with the run so far."""
        try:
            return list(json.loads((self.path / "findings.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return []

    def show(self, examples: list[dict[str, Any]]) -> None:
        """Keep some texts."""
        self._append("examples.jsonl", examples)

    def _example(self, step: int, row: Any) -> dict[str, Any]:
        return example(step, row) | {"teacher": self.teacher.get(row.problem.id)}

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        path = self.path / name
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write("".join(to_json(row) + "\n" for row in rows))

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result; the cell has then ended and its resume points go."""
        write_text(self.path / "result.json", to_json(result) + "\n")
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        if result["status"] == "done":  # a failed cell has spent it all the same
            self._settle()

    def _settle(self) -> None:
        """Keep what earlier attempts spent for nothing; the rest stands in the result."""
        path = self.path / ".spent"
        spent = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if "lost" in spent:
            write_text(path, to_json({"lost": spent["lost"]}))
        else:
            path.unlink(missing_ok=True)

    def reset(self) -> None:
        """Forget a failed cell, so that it is run again."""
        (self.path / "result.json").unlink(missing_ok=True)
        shutil.rmtree(self.path / "tracking", ignore_errors=True)  # to trackers another run


def example(step: int, row: Any) -> dict[str, Any]:
    """One graded text as a record."""
    return {
        "step": step,
        "problem": row.problem.id,
        "question": row.problem.question,
        "answer": row.problem.answer,
        "text": row.text,
        "strict": row.grade.strict,
        "flexible": row.grade.flexible,
        "tokens": row.tokens,
        "ended": row.ended,
    }


class StudyFolder:
    """A study's folder: its settings, its cells by name, and a cache that studies may share."""

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        self.path = Path(path)
        self.cache = cache or self.path / ".cache"

    @property
    def settings(self) -> dict[str, Any] | None:
        """The table in study.toml, or None in a new folder."""
        file = self.path / "study.toml"
        if not file.exists():
            return None
        try:
            return tomllib.loads(file.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise PotstillError(f'"{file}" is damaged: {error}', "use another --out") from None

    def open(self, study: Study) -> None:
        """Take the folder for this study; the grid may grow, other settings may not change.

        Raises:
            PotstillError: the folder belongs to a study with other settings, or cannot be written.
        """
        self.check(study)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        text = tomli_w.dumps({**study.to_toml(), "provenance": provenance()})
        write_text(self.path / "study.toml", text)

    def check(self, study: Study) -> None:
        """Raise what `open` would, and leave no trace."""
        # looked at before the settings are: another study may be opening the folder right now
        strange = self.path.is_dir() and any(
            not path.name.startswith(".") for path in self.path.iterdir()
        )
        mine, its = study.to_toml(), self.settings
        if its is None and strange:
            raise PotstillError(
                f'"{self.path}" is not empty and is no study folder', "use another --out"
            )
        if its is not None:
            its.pop("provenance", None)
            self._same(mine, _with_defaults(its))
        there = next(path for path in (self.path, *self.path.parents) if path.exists())
        with writing(self.path), tempfile.TemporaryDirectory(dir=there, prefix=".potstill-"):
            pass

    def _same(self, mine: dict[str, Any], its: dict[str, Any]) -> None:
        changed = []
        for key in sorted(mine.keys() | its.keys()):
            a, b = its.get(key), mine.get(key)
            if key in ("price", "budget", "ray", "track"):
                continue  # what is paid, where it runs and who is told, changes no number
            if key in ("methods", "pairs", "seeds"):
                lost = [value for value in a or [] if value not in (b or [])]
                changed += [f"{key} lost {lost}"] if lost else []
            elif key in ("pair", "recipe"):
                changed += [f"{key}.{n}" for n in a or {} if (b or {}).get(n) != (a or {})[n]]
            elif isinstance(a, dict) and isinstance(b, dict):
                inner = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
                changed += [f"{key}.{k}: {a.get(k)} -> {b.get(k)}" for k in inner]
            elif a != b and key != "name":
                changed.append(f"{key}: {a} -> {b}")
        if changed:
            raise PotstillError(
                f'"{self.path}" holds a study with other settings ({"; ".join(changed)})',
                "use another --out, or the settings of its study.toml; adding methods, pairs and "
                "seeds is fine",
            )

    @property
    def predicted(self) -> dict[str, dict[str, Spent]]:
        """What pre-flight said a run would take: pair -> method; empty where it was skipped."""
        try:
            kept = json.loads((self.path / "predicted.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return {pair: {m: Spent.read(r) for m, r in runs.items()} for pair, runs in kept.items()}

    @predicted.setter
    def predicted(self, found: Mapping[str, Mapping[str, Spent]]) -> None:
        kept = {pair: {m: asdict(r) for m, r in runs.items()} for pair, runs in found.items()}
        write_text(self.path / "predicted.json", to_json(kept) + "\n")

    def ledger(self, study: Study, told: Callable[[], str] = str) -> Ledger:
        """What the study's cells have spent against its budget; `told` as `Ledger` has it."""
        return Ledger(self.path / "cells", study.budget, study.price, told)

    def cell(self, cell: Cell, **options: Any) -> CellFolder:
        return CellFolder(self.path / "cells" / str(cell), **options)

    def results(self, cells: Sequence[Cell]) -> dict[Cell, dict[str, Any]]:
        """Results of those cells that have ended, in the order asked for."""
        found = {cell: self.cell(cell).result for cell in cells}
        return {cell: result for cell, result in found.items() if result is not None}


def _with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version wrote, with the defaults of fields that came since."""
    try:
        return Study.model_validate(settings).to_toml()
    except ValueError:
        return settings  # a field is gone: the comparison names it


def cells_of(study: Study) -> list[Cell]:
    """Every cell in the order of running: references first, then seed by seed, long runs first."""
    references = [Cell(pair, role) for role in reversed(REFERENCES) for pair in study.models]
    order = sorted(study.recipes.values(), key=lambda recipe: -recipe.budget)
    runs = [
        Cell(pair, recipe.name, seed)
        for seed in study.seeds
        for recipe in order
        for pair in study.models
    ]
    return references + runs
