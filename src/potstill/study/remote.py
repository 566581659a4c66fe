"""A study's folder behind a URL: any place that fsspec reaches, such as s3://bucket/study.

`Remote` is the folder there, file by file; `Mirror` a copy here of what a report and the live view
read, so that they know of no URL. Resume points and trained students are not copied.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from potstill.errors import PotstillError, StorageError

MARK, SPENT, RESULT = ".running", ".spent", "result.json"
STOP = ".stop"  # says in words which budget is spent, to cells that work elsewhere
GROWING = ("metrics.jsonl", "examples.jsonl", "findings.json", SPENT)
MIRRORED = {*GROWING, RESULT, MARK, "study.toml", "predicted.json"}
WRITTEN = ("results.json", "table.csv", "report.html", "figures/*")  # by a report
SILENT = 60.0  # seconds that a place may refuse while cells work
ALONE = {"memory", "data", "http", "https", "github", "zip", "tar"}  # not shared, or not writable
# A put replaces a file whole there; anywhere else it is written beside and moved.
OBJECTS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci"}


def is_url(place: str | Path) -> bool:
    """Whether a folder is named by URL."""
    return "://" in str(place)


class Remote:
    """The files below a URL, by their path relative to it.

    Raises:
        PotstillError: fsspec knows no such URL, or no two processes can share what is there.
        StorageError: from every method, where the place does not answer or refuses.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        kind = url.partition("://")[0]
        if kind in ALONE:
            raise PotstillError(
                f'"{url}" is no place that processes can write to together',
                "give a folder, or a URL such as s3://bucket/study or file:///shared/study",
            )
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise PotstillError(f'"{url}": {error}', "install what it names") from None
        except ValueError as error:
            raise PotstillError(f'"{url}": {error}', "for example s3://bucket/study") from None
        self._whole = kind in OBJECTS
        self._made: set[str] = set()

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    @contextlib.contextmanager
    def _asking(self, name: str = "") -> Iterator[None]:
        """Clouds have exceptions of their own for a refusal: all but "not there" are one here."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            raise StorageError(
                f'"{self.url}/{name}" cannot be used: {type(error).__name__}: {error}',
                "see that the place is there and lets you write, then run the same command again: "
                "what is finished is kept",
            ) from error

    def tree(self, below: str = "") -> dict[str, dict[str, Any]]:
        """Every file below a folder with what the place tells of it; empty where none is."""
        root = self._at("").rstrip("/") + "/"
        with self._asking(below):
            try:
                found = self._files.find(self._at(below), detail=True)
            except FileNotFoundError:
                return {}
        return {path.removeprefix(root): info for path, info in found.items()}

    def read(self, name: str) -> bytes | None:
        """A file's content; None where there is none."""
        try:
            with self._asking(name):
                return bytes(self._files.cat_file(self._at(name)))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Replace a small file, whole."""
        with self._replacing(name) as path:
            self._files.pipe_file(path, content)

    def upload(self, file: Path, name: str) -> None:
        """Replace a file by a local one, whole; FileNotFoundError where that is gone."""
        file.stat()
        with self._replacing(name) as path:
            self._files.put_file(str(file), path)

    @contextlib.contextmanager
    def _replacing(self, name: str) -> Iterator[str]:
        path = self._at(name)
        folder, _, last = path.rpartition("/")
        with self._asking(name):
            if not self._whole and folder not in self._made:
                self._files.makedirs(folder, exist_ok=True)
                self._made.add(folder)
            partial = path if self._whole else f"{folder}/.{last}.partial"
            yield partial
            if not self._whole:
                self._files.mv(partial, path)

    def download(self, name: str, file: Path) -> bool:
        """Copy a file here, whole or not at all; False where it is gone."""
        partial = file.with_name(f".{file.name}.partial")
        try:
            with self._asking(name):
                file.parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(self._at(name), str(partial))
                partial.replace(file)
        except FileNotFoundError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it, if it is there."""
        with contextlib.suppress(FileNotFoundError), self._asking(name):
            self._files.rm(self._at(name), recursive=True)
            self._made = {made for made in self._made if not made.startswith(self._at(name))}

    def check(self) -> None:
        """Raise where nothing can be written; leaves no trace."""
        self.write(".potstill", b"")
        self.remove(".potstill")


class Patience:
    """Lets a place be silent for a moment: what it refuses is passed over until it has refused
    everything for a while. Used around each question in turn."""

    def __init__(self) -> None:
        self._since: float | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if kind is None:
            self._since = None
        if kind is not StorageError:
            return False
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        return now - self._since < SILENT


class Source(Protocol):
    """A study's folder to read from, wherever it is."""

    path: Path  # the folder, or its copy here

    def pull(self) -> None:
        """Bring the copy up to date."""

    def publish(self) -> None:
        """Send what a report has written to where the study is."""


class Here:
    """A folder on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pull(self) -> None:
        pass

    def publish(self) -> None:
        pass


class Mirror:
    """A copy, in runs/mirrors/, of what is small in a study behind a URL."""

    def __init__(self, url: str) -> None:
        self.remote = Remote(url)
        self.path = Path("runs") / "mirrors" / named(self.remote.url)
        self._seen: dict[str, str] = {}

    def pull(self) -> None:
        """Copy what is new there, and forget what is gone."""
        found = {
            name: repr(sorted(info.items()))
            for name, info in self.remote.tree().items()
            if name.rpartition("/")[2] in MIRRORED
        }
        for name, state in found.items():
            if self._seen.get(name) != state and self.remote.download(name, self.path / name):
                self._seen[name] = state
        here = {str(p.relative_to(self.path)) for p in self.path.rglob("*") if p.name in MIRRORED}
        for name in here - found.keys():
            (self.path / name).unlink(missing_ok=True)
            self._seen.pop(name, None)

    def open(self) -> None:
        """Send a study that was opened here, and forget there the results that it dropped."""
        for name in ("study.toml", "predicted.json"):
            if (self.path / name).exists():
                self.send(name)
        for name in [n for n in self._seen if n.endswith(RESULT)]:
            if not (self.path / name).exists():
                self.remote.remove(name)
                del self._seen[name]

    def send(self, name: str) -> None:
        """Copy one file there."""
        self.remote.upload(self.path / name, name)

    def publish(self) -> None:
        for pattern in WRITTEN:
            for file in sorted(self.path.glob(pattern)):
                self.send(file.relative_to(self.path).as_posix())

    def mark(self, cell: str) -> dict[str, Any]:
        """Who works on a cell, as of the last look; empty where nobody does."""
        try:
            return dict(json.loads((self.path / "cells" / cell / MARK).read_bytes()))
        except FileNotFoundError:
            return {}


def named(url: str) -> str:
    """A folder's name for a URL, readable and its own.

    >>> named("s3://bucket/my study")
    's3-bucket-my-study-1b0d271a'
    """
    readable = re.sub(r"[^\w.]+", "-", url).strip("-")[-60:]
    return f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def source(place: str) -> tuple[Source, Path]:
    """A study's folder, or a cell's, to read from; and the path to read.

    Raises:
        PotstillError: there is no study behind the URL.
    """
    if not is_url(place):
        return Here(Path(place)), Path(place)
    study, _, cell = place.rstrip("/").partition("/cells/")
    mirror = Mirror(study)
    if mirror.remote.read("study.toml") is None:
        raise PotstillError(f'"{study}" holds no study', "give what `potstill study --out` had")
    mirror.pull()
    return mirror, mirror.path / "cells" / cell if cell else mirror.path
