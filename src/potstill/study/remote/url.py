"""Files below a URL: any storage that fsspec reaches, such as s3://bucket/study."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from potstill.errors import PotstillError, StorageError
from potstill.urls import Url, full

GRACE = 60.0  # seconds for which storage may fail while runs execute
# Protocols without shared writes.
NOT_SHARED = {"memory", "data", "http", "https", "github", "zip", "tar"}
# Object stores replace a file atomically; elsewhere files are written under another name and moved.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci"}


def is_url(place: str | Path) -> bool:
    """True for URLs, False for paths."""
    return "://" in str(place)


class Remote:
    """The files below a URL, by relative path.

    Raises:
        PotstillError: fsspec does not know the URL, or its protocol does not support shared writes.
        StorageError: by every method, if the storage is unreachable or denies access.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = Url(full(url).rstrip("/"))
        protocol = self.url.partition("://")[0]
        if protocol in NOT_SHARED:
            raise PotstillError(
                f'"{self.url}" does not support shared writes',
                "give a folder, or a URL such as s3://bucket/study or file:///shared/study",
            )
        if self.url.incomplete:
            raise PotstillError(
                f'"{self.url}" is without its secrets', "give the whole URL, as it was at first"
            )
        example = "for example s3://bucket/study"
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url.full, use_listings_cache=False)
        except ImportError as error:
            raise PotstillError(f'"{self.url}": {error}', "install the package it names") from None
        except ValueError as error:
            raise PotstillError(f'"{self.url}": {error}', example) from None
        except Exception as error:  # of a cloud's own package, such as a key that it cannot read
            raise PotstillError(f'"{self.url}": {type(error).__name__}: {error}', example) from None
        self._atomic = protocol in OBJECT_STORES
        self._folders: set[str] = set()  # known to exist
        self._name = uuid.uuid4().hex[:12]  # of temporary files, as others may write the same file

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    @contextlib.contextmanager
    def _storage_errors(self, name: str = "") -> Iterator[None]:
        """Convert every error but a missing file: each cloud has exceptions of its own."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            raise StorageError(
                f'"{self.url}/{name}" cannot be used: {type(error).__name__}: {error}',
                "check that it exists and that you may write to it, then run the same command "
                "again: finished runs are kept",
            ) from error

    def tree(self, below: str = "") -> dict[str, dict[str, Any]]:
        """Every file below a folder with its metadata; empty if the folder does not exist.

        Raises:
            PotstillError: a name that would be a file outside this folder, or none that can be.
        """
        root = self._path("").rstrip("/") + "/"
        with self._storage_errors(below):
            try:
                files = self._fs.find(self._path(below), detail=True)
            except FileNotFoundError:
                return {}
        names = {path.removeprefix(root): info for path, info in files.items()}
        for name in names:
            if reason := _unusable(name, names):
                raise PotstillError(
                    f'"{self.url}" has a file named {name!r}, which {reason}',
                    "no study has such a file: remove it, and find out who can write there",
                )
        return names

    def read(self, name: str) -> bytes | None:
        """A file's content; None if it does not exist."""
        try:
            with self._storage_errors(name):
                return bytes(self._fs.cat_file(self._path(name)))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Replace a small file atomically."""
        with self._replacing(name) as path:
            self._fs.pipe_file(path, content)

    def upload(self, file: Path, name: str) -> None:
        """Replace a file by a local one atomically.

        Raises:
            FileNotFoundError: the local file does not exist.
        """
        file.stat()
        with self._replacing(name) as path:
            self._fs.put_file(str(file), path)

    @contextlib.contextmanager
    def _replacing(self, name: str) -> Iterator[str]:
        """Yields the path to write to."""
        path = self._path(name)
        folder, _, last = path.rpartition("/")
        with self._storage_errors(name):
            if not self._atomic and folder not in self._folders:
                self._fs.makedirs(folder, exist_ok=True)
                self._folders.add(folder)
            partial = path if self._atomic else f"{folder}/.{last}.{self._name}.partial"
            yield partial
            if not self._atomic:
                self._fs.mv(partial, path)

    def download(self, name: str, file: Path) -> bool:
        """Copy a file here atomically; False if it does not exist."""
        partial = file.with_name(f".{file.name}.{self._name}.partial")
        try:
            with self._storage_errors(name):
                file.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(self._path(name), str(partial))
                partial.replace(file)
        except FileNotFoundError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Remove a file, or a folder and its content, if it exists."""
        with contextlib.suppress(FileNotFoundError), self._storage_errors(name):
            self._fs.rm(self._path(name), recursive=True)
            self._folders = {f for f in self._folders if not f.startswith(self._path(name))}

    def check(self) -> None:
        """Raise if nothing can be written; leaves no file behind."""
        self.write(".potstill", b"")
        self.remove(".potstill")


def _unusable(name: str, names: Collection[str]) -> str:
    """The reason not to write a file of a listing below a folder; empty if there is none."""
    parts = name.split("/")
    if any(char in name for char in "\\\0"):
        return "has a backslash or a NUL character"
    if not name or {"", ".", ".."} & {*parts, *unquote(name).split("/")}:
        return "is not below it"
    for i in range(1, len(parts)):
        if "/".join(parts[:i]) in names:
            return f"is below another file, {'/'.join(parts[:i])!r}"
    return ""


class GracePeriod:
    """Suppresses storage errors until every use for a while has failed.

    A context manager, to be used around each request in turn.
    """

    def __init__(self) -> None:
        self._failing_since: float | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if kind is None:
            self._failing_since = None
        if kind is not StorageError:
            return False
        now = time.monotonic()
        self._failing_since = now if self._failing_since is None else self._failing_since
        return now - self._failing_since < GRACE
