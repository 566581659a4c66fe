"""Tables of large sources as memory-mapped files, which all processes of a machine share.

A file is written once, under a temporary name, and renamed when it is complete. Its name is a
digest of the contents of the sources and of all that the reading depends on, so that it is never
out of date. A file that has changed since, or was removed, is made again.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import filelock
import pyarrow as pa

from potstill.caches import cache_folder
from potstill.digests import file_digest
from potstill.tasks.data.records import Record
from potstill.tasks.data.table import in_memory, mapped, write

LARGE = 8 * 2**20  # bytes of sources from which on their table is a file
PACKED = 8  # times that compressed sources grow
PACKED_NAMES = (".gz", ".parquet", ".arrow")

log = logging.getLogger(__name__)


def table_of(
    files: Sequence[Path], options: object, records: Callable[[], Iterable[Record]]
) -> pa.Table:
    """The table of some records, which are read only where it does not exist yet.

    Args:
        files: the files that they come from.
        options: all that they depend on besides; its repr is part of the key.
        records: reads them.
    """
    place = cache_folder("data")
    if place is None or _size(files) < LARGE:
        return in_memory(records())
    path = place / f"{_key(files, options)}.arrow"
    try:
        if (table := _opened(path)) is not None:
            return table
        place.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock")):
            if (table := _opened(path)) is not None:  # another process has written it
                return table
            partial = path.with_suffix(f".{os.getpid()}.partial")
            try:
                write(partial, records())
                _note(path).write_text(str(file_digest(partial)), encoding="utf-8")
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        return mapped(path)
    except OSError as error:  # a full disk, or a cache that cannot be written
        log.warning("the data are held in memory, as %s cannot be written: %s", place, error)
        return in_memory(records())


def _note(path: Path) -> Path:
    """The file with the digest of a table's file."""
    return path.with_suffix(".digest")


def _opened(path: Path) -> pa.Table | None:
    """The table of a file; None if there is none, or it is not what was written."""
    try:
        if not path.is_file():
            return None
        if _note(path).read_text(encoding="utf-8") != file_digest(path):
            raise ValueError("its contents have changed")
        return mapped(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        log.warning("%s is damaged (%s) and is made again", path, error)
        return None


@lru_cache(1)
def _source() -> str:
    """A digest of the modules that make tables, which an installation may have changed."""
    here = Path(__file__).parent
    hasher = hashlib.sha256()
    for path in sorted([*here.glob("*.py"), *here.parent.glob("*.py")]):
        hasher.update(path.read_bytes())
    return hasher.hexdigest()


def _size(files: Sequence[Path]) -> int:
    """Bytes of the sources, about what they have when they are unpacked."""
    sizes = ((path, path.stat().st_size) for path in files if path.is_file())
    return sum(n * (PACKED if path.name.endswith(PACKED_NAMES) else 1) for path, n in sizes)


def _key(files: Sequence[Path], options: object) -> str:
    """The digest of the sources, the options and the version that reads them."""
    parts = [_source(), options]
    parts += [(path.name.partition(".")[2], file_digest(path)) for path in files]
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
