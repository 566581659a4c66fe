"""A study's folder elsewhere, as a folder here: the small files that a view reads, kept fresh.

Any address that fsspec knows (s3://, gs://, ssh://, hf://, ...); its keys come from where that
file system looks for them. It reads only, and leaves out models, resume points and caches.
"""

from __future__ import annotations

import re
from pathlib import Path

from potstill.errors import PotstillError

WANTED = re.compile(
    r"study\.toml|predicted\.json"
    r"|cells/[^/]+/[^/]+/[^/]+/(metrics\.jsonl|result\.json|findings\.json|\.running)"
    r"|cells/[^/]+/[^/]+/[^/]+/tracking/\w+\.json"
)


class Mirror:
    """Copies what is new at an address into a folder.

    Args:
        url: the study's folder.
        folder: here.
    """

    def __init__(self, url: str, folder: Path) -> None:
        from fsspec.core import url_to_fs

        self.folder = folder
        try:
            self._system, self._root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise PotstillError(
                f'cannot open "{url}": {error}', "give an address that fsspec knows, e.g. s3://..."
            ) from None
        self._url = url
        self._known: dict[str, tuple[object, ...]] = {}

    def refresh(self) -> None:
        """Copy what has changed and remove what is gone.

        Raises:
            PotstillError: the address cannot be read.
        """
        self._system.invalidate_cache()
        try:
            found = self._system.find(self._root, detail=True)
        except Exception as error:  # each file system raises its own
            raise PotstillError(
                f'cannot read "{self._url}": {error}', "see that it is there, and its credentials"
            ) from error
        there: dict[str, str] = {}
        for path, facts in found.items():
            name = path.removeprefix(self._root.rstrip("/")).lstrip("/")
            if WANTED.fullmatch(name):
                there[name] = path
                self._take(name, path, facts)
        for name in self._known.keys() - there.keys():
            del self._known[name]
            (self.folder / name).unlink(missing_ok=True)

    def _take(self, name: str, path: str, facts: dict[str, object]) -> None:
        changed = ("size", "mtime", "LastModified", "last_modified", "updated", "etag", "ETag")
        state = tuple(str(facts.get(key)) for key in changed)
        if self._known.get(name) == state:
            return
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.partial")
        try:
            partial.write_bytes(self._system.cat_file(path))
        except FileNotFoundError:  # it was replaced or removed just now
            return
        partial.replace(place)
        self._known[name] = state
