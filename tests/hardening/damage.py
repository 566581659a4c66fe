"""Damage to the files of a study's folder, and what the commands then say.

`Folder` makes a study that is done but for one run, damages one file of a copy and runs a command
on it. The outcome is "right" if the command says what it says about the undamaged folder, or
"refused" if it ends with exit code 2 and an error that names the file; anything else is a fault.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from conftest import toy_table
from potstill import cli
from potstill.engines.fake import FakeEngine
from potstill.study.loading import read_study
from potstill.study.run import run_cell
from potstill.study.storage import RunId, StudyFolder

Damage = Callable[[Path, random.Random], None]
UNFINISHED = RunId("toy", "hybrid", 1)
WRITTEN_ANEW = {"report.html", "results.json", "table.csv", ".lock"}  # never read


def cut(file: Path, rng: random.Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data) + 1)])


def flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def digit(file: Path, rng: random.Random) -> None:
    """Another digit in the place of one."""
    data = bytearray(file.read_bytes())
    places = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
    if places:
        data[rng.choice(places)] = 48 + rng.randrange(10)
    file.write_bytes(data)


def zero(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    start = rng.randrange(len(data) + 1)
    data[start : start + 64] = bytes(len(data[start : start + 64]))
    file.write_bytes(data)


def double(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes() * 2)


def double_line(file: Path, rng: random.Random) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    if lines:
        at = rng.randrange(len(lines))
        lines.insert(at, lines[at])
    file.write_bytes(b"".join(lines))


def drop_line(file: Path, rng: random.Random) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    if lines:
        del lines[rng.randrange(len(lines))]
    file.write_bytes(b"".join(lines))


def utf16(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes().decode("utf-8", "replace").encode("utf-16"))


def bom(file: Path, rng: random.Random) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())


def crlf(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))


def empty(file: Path, rng: random.Random) -> None:
    file.write_bytes(b"")


def rubbish(file: Path, rng: random.Random) -> None:
    file.write_bytes(rng.randbytes(rng.randrange(1, 400)))


def directory(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()


def loop(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.symlink_to(file.name)


def dangling(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def pipe(file: Path, rng: random.Random) -> None:
    file.unlink()
    os.mkfifo(file)


SHAPES = ("[]", "{}", "3", "null", '"text"', "[1, 2]", '{"a": 1}', "[" * 5000 + "]" * 5000)


def shape(file: Path, rng: random.Random) -> None:
    """JSON of another shape."""
    file.write_text(rng.choice(SHAPES) + "\n")


VALUES = (None, -1, 9.5, 1e400, "x", [], {}, True, 10**400, "\ud800", "\x1b[31m")


def value(file: Path, rng: random.Random) -> None:
    """A value of another kind somewhere in the first record, without a digest."""
    try:
        lines = file.read_text().splitlines()
        record = json.loads(lines[0])
    except (ValueError, IndexError):
        return shape(file, rng)
    record.pop("digest", None)
    inner: Any = record
    while isinstance(inner, dict) and inner:
        key = rng.choice(sorted(inner))
        if not isinstance(inner[key], dict) or rng.random() < 0.5:
            inner[key] = rng.choice(VALUES)
            break
        inner = inner[key]
    lines[0] = json.dumps(record)
    file.write_text("\n".join([*lines, ""]))
    return None


def field(file: Path, rng: random.Random) -> None:
    """A field less or more in the first record, without a digest."""
    try:
        lines = file.read_text().splitlines()
        record = json.loads(lines[0])
        record.pop("digest", None)
        if rng.random() < 0.5:
            record.pop(rng.choice(sorted(record)))
        else:
            record["of_another_version"] = 1
    except (ValueError, IndexError, AttributeError):
        return shape(file, rng)
    file.write_text("\n".join([json.dumps(record), *lines[1:], ""]))
    return None


def other(file: Path, rng: random.Random) -> None:
    """The same file of another run, or another file of this one.

    Two unfinished runs whose files are exchanged are not told apart: there is no result yet.
    """
    if str(UNFINISHED) in str(file):
        return rubbish(file, rng)
    cells = file.parents[3] if file.parents[3].name == "cells" else file.parent
    files = [p for p in [*cells.rglob(file.name), *file.parent.iterdir()] if p.is_file()]
    shutil.copy(rng.choice(sorted(files)), file.with_name(".copy"))
    file.with_name(".copy").replace(file)
    return None


CLOCKS = ("seconds", "activity", "saved", "peak_bytes", "provenance", "digest")


def recorded(out: Path) -> dict[str, Any]:
    """What a study has recorded, without clock times, and what is left in its runs' folders."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in out.glob("cells/*/*/*/*") if path.name != ".spent"):
        name = str(file.relative_to(out))
        if file.name == "result.json":
            record = json.loads(file.read_text())
            found[name] = {key: record[key] for key in record if key not in CLOCKS}
        else:
            found[name] = file.read_bytes() if file.is_file() else "folder"
    return found


WAYS: tuple[Damage, ...] = (
    *(cut, flip, digit, zero, double, double_line, drop_line, utf16, bom, crlf, empty, rubbish),
    *(directory, loop, dangling, pipe, shape, value, field, other),
)
COMMANDS = ("report", "watch", "compare", "diagnose", "study")


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int | None  # None: an exception
    out: str
    err: str


def say(*words: object) -> Said:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["potstill", *map(str, words)]
    code: int | None = None
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            cli.main()
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except Exception:
        err.write(traceback.format_exc())
    finally:
        sys.argv = before
    return Said(code, out.getvalue(), err.getvalue())


class Folder:
    """A study of four runs that is done but for one, and copies of it with one damaged file.

    Args:
        place: an empty folder.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.whole = place, place / "whole" / "out"
        table = toy_table(
            place,
            methods=["on_policy_gkd", "hybrid"],
            seeds=[0, 1],
            train={"steps": 6, "checkpoint_every": 2},
            budget={"tokens": 10**9},
        )
        self.file = place / "toy.toml"
        self.file.write_text(tomli_w.dumps(table))
        done = say("study", self.file, "--out", self.whole, "--workers", 1, "--no-figures")
        assert done.code == 0, done.err
        self._take_back(table)
        self.files = sorted(
            str(path.relative_to(self.whole))
            for path in self.whole.rglob("*")
            if path.is_file() and path.name not in WRITTEN_ANEW and "student" not in path.parts
        )
        self.said = {command: self._run(command, self.copied()) for command in COMMANDS}

    def _take_back(self, table: dict[str, Any]) -> None:
        """Repeat one run until it is interrupted in its fifth step; a collapse is noted."""
        study, folder = read_study(table), StudyFolder(self.whole)
        run = folder.cell(UNFINISHED)
        shutil.rmtree(run.path)
        step = FakeEngine.step

        def interrupted(self: FakeEngine, *args: Any) -> Any:
            if run.steps == 4:
                raise KeyboardInterrupt
            return step(self, *args)

        FakeEngine.step = interrupted  # type: ignore[method-assign]
        try:
            with contextlib.suppress(KeyboardInterrupt):
                run_cell(study, folder, UNFINISHED, ledger=folder.ledger(study))
        finally:
            FakeEngine.step = step  # type: ignore[method-assign]
        run.mark_running(True)
        assert run.result is None and run.steps == 4 and list(run.path.glob("checkpoints/step-*"))

    def copied(self) -> Path:
        """A fresh copy of the whole folder, in the place of the last one."""
        copy = self.place / "copy" / "out"
        shutil.rmtree(copy.parent, ignore_errors=True)
        shutil.copytree(self.whole, copy, symlinks=True)
        return copy

    def _run(self, command: str, folder: Path) -> tuple[Said, Any]:
        """How a command ends, and the numbers that it gives."""
        words: dict[str, list[object]] = {
            "report": ["report", folder],
            "watch": ["watch", folder, "--once"],
            "compare": ["compare", folder, self.whole, "--out", folder / "c.html", "--json"],
            "diagnose": ["diagnose", folder, "--json"],
            "study": ["study", self.file, "--out", folder, "--workers", 1, "--no-figures"],
        }
        if command == "study":
            words["study"].append("--no-preflight")
        ended = say(*words[command])
        numbers: Any = ended.out
        if command in ("report", "study") and ended.code in (0, 1):
            results = json.loads((folder / "results.json").read_text())
            numbers = {key: results[key] for key in ("table", "cells")}
            for cell in numbers["cells"]:  # clock times
                for key in ("seconds", "activity", "peak_bytes", "provenance", "notes", "files"):
                    cell.pop(key, None)
            for row in numbers["table"]:
                row.pop("seconds", None)
        return ended, numbers

    def case(self, number: int) -> Iterator[tuple[str, str, str]]:
        """One damage, decided by its number: its name, the outcome, and what was said."""
        rng = random.Random(number)
        name, way, command = rng.choice(self.files), rng.choice(WAYS), rng.choice(COMMANDS)
        folder = self.copied()
        way(folder / name, rng)
        ended, numbers = self._run(command, folder)
        wanted, right = self.said[command]
        title = f"{number}: {way.__name__} {name}, {command}"
        yield title, outcome(ended, numbers, wanted, right, name, command), ended.err or ended.out


def outcome(
    ended: Said, numbers: Any, wanted: Said, right: Any, name: str, command: str = ""
) -> str:
    """Right, refused, traceback, unnamed (a refusal that does not name the file), or wrong.

    A growing file of an unfinished run that was cut shows an earlier moment of the run; only a
    study that goes on has to reach the same numbers.
    """
    if ended.code is None or "Traceback" in ended.err:
        return "traceback"
    if ended.code == 2:
        lines = ended.err.strip().splitlines()
        error = any(line.startswith("error: ") and len(line) > 12 for line in lines)
        hint = any(line.startswith("hint: ") and len(line) > 12 for line in lines)
        parts = Path(name).parts
        run = "/".join(parts[1:4])
        named = parts[-1] in ended.err or (len(parts) > 4 and run in ended.err)
        return "refused" if error and hint and named else "unnamed"
    if ended.code != wanted.code:
        return "wrong"
    earlier = str(UNFINISHED) in name and name.endswith(".jsonl") and command != "study"
    return "right" if numbers == right or earlier else "wrong"
