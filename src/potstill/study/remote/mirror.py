"""The local copy of a study behind a URL, for whatever reads a study's folder.

Only small files are copied, so that reports and progress displays need no URL. Checkpoints and
trained students stay behind the URL.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Protocol

from potstill.errors import PotstillError
from potstill.study.remote.names import MIRRORED, REPORT, RESULT, RUNNING
from potstill.study.remote.url import Remote, is_url
from potstill.urls import cut, full


class Source(Protocol):
    """A study's folder to read from, local or remote."""

    path: Path  # the folder, or the local copy

    def pull(self) -> None:
        """Update the local copy."""

    def publish(self) -> None:
        """Upload the files that a report has written."""


class LocalFolder:
    """A folder on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pull(self) -> None:
        pass

    def publish(self) -> None:
        pass


class Mirror:
    """A local copy, in runs/mirrors/, of the small files of a study behind a URL."""

    def __init__(self, url: str) -> None:
        self.remote = Remote(url)
        self.path = Path("runs") / "mirrors" / folder_name(self.remote.url)
        self._versions: dict[str, str] = {}  # metadata of the files as they were copied

    def pull(self) -> None:
        """Copy files that are new or changed, and remove those that no longer exist there."""
        versions = {
            name: repr(sorted(info.items()))
            for name, info in self.remote.tree().items()
            if name.rpartition("/")[2] in MIRRORED
        }
        for name, version in versions.items():
            self._check_inside(name)
            changed = self._versions.get(name) != version
            if changed and self.remote.download(name, self.path / name):
                self._versions[name] = version
        local = {str(p.relative_to(self.path)) for p in self.path.rglob("*") if p.name in MIRRORED}
        for name in local - versions.keys():
            (self.path / name).unlink(missing_ok=True)
            self._versions.pop(name, None)

    def _check_inside(self, name: str) -> None:
        """Raise if a link in the copy leads out of it."""
        folder = (self.path / name).parent
        if not folder.resolve().is_relative_to(self.path.resolve()):
            raise PotstillError(
                f'"{folder}" is a link that leads out of "{self.path}"',
                f'remove the folder "{self.path}": it is a copy, and is made again',
            )

    def open(self) -> None:
        """Upload a study that was opened in the copy, and remove results that it has dropped."""
        for name in ("study.toml", "inputs.json", "predicted.json"):
            if (self.path / name).exists():
                self.upload(name)
        for name in [n for n in self._versions if n.endswith(RESULT)]:
            if not (self.path / name).exists():
                self.remote.remove(name)
                del self._versions[name]

    def upload(self, name: str) -> None:
        """Copy one file to the URL."""
        self.remote.upload(self.path / name, name)

    def publish(self) -> None:
        for pattern in REPORT:
            for file in sorted(self.path.glob(pattern)):
                self.upload(file.relative_to(self.path).as_posix())

    def lease(self, run: str) -> dict[str, Any]:
        """The lease on a run as of the last `pull`; empty if there is none."""
        file = self.path / "cells" / run / RUNNING
        try:
            lease = json.loads(file.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError:
            lease = None
        if not (isinstance(lease, dict) and {"driver", "attempt"} <= lease.keys()):
            raise PotstillError(
                f'"{self.remote.url}/cells/{run}/{RUNNING}" is damaged',
                "remove it: it only names the process that executes the run",
            )
        return lease


def folder_name(url: str) -> str:
    """A unique and readable folder name for a URL, without its secrets.

    >>> folder_name("s3://bucket/my study")
    's3-bucket-my-study-1b0d271a'
    """
    url = cut(url)
    readable = re.sub(r"[^\w.]+", "-", url).strip("-")[-60:]
    return f"{readable}-{hashlib.sha256(url.encode('utf-8', 'replace')).hexdigest()[:8]}"


def source(place: str) -> tuple[Source, Path]:
    """Open a study's folder, or a run's, for reading; also returns the local path to read.

    Raises:
        PotstillError: there is no study behind the URL.
    """
    if not is_url(place):
        return LocalFolder(Path(place)), Path(place)
    study, _, run = full(place).rstrip("/").partition("/cells/")
    mirror = Mirror(study)
    if mirror.remote.read("study.toml") is None:
        raise PotstillError(
            f'"{mirror.remote.url}" holds no study',
            "give the URL that `potstill study --out` was given",
        )
    mirror.pull()
    return mirror, mirror.path / "cells" / run if run else mirror.path
