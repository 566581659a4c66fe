"""A disk that is full from a given write on, in this process.

Every way to write below a folder is counted: opening a file for writing, making a directory,
renaming, syncing, and saving tensors, which does not go through Python.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.numpy
import safetensors.torch

from potstill.engines import fake

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class FullDisk:
    """Counts the writes below a folder and lets some fail with "No space left on device".

    Args:
        folder: whose writes count.
        at: the first write that fails, from 1 on; 0: none.
        stays: all later ones fail too.
    """

    def __init__(self, folder: Path, at: int = 0, stays: bool = True) -> None:
        self.folder, self.at, self.stays, self.writes = str(folder), at, stays, 0

    def _count(self, path: Any) -> None:
        if not str(os.fspath(path) if not isinstance(path, int) else "").startswith(self.folder):
            return
        self.writes += 1
        if self.at and (self.writes == self.at or (self.stays and self.writes > self.at)):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    @contextmanager
    def mounted(self) -> Iterator[FullDisk]:
        """Patch this process."""
        with pytest.MonkeyPatch.context() as patch:

            def counting(
                place: ModuleType, name: str, writes: Callable[..., bool], argument: int = 0
            ) -> None:
                real = getattr(place, name)

                def call(*args: Any, **kwargs: Any) -> Any:
                    if writes(*args, **kwargs):
                        self._count(args[argument])
                    return real(*args, **kwargs)

                patch.setattr(place, name, call)

            def for_writing(file: Any, mode: str = "r", *_: Any, **__: Any) -> bool:
                return not isinstance(file, int) and any(letter in mode for letter in "wax+")

            def with_flags(path: Any, flags: int, *_: Any, **__: Any) -> bool:
                return bool(flags & WRITING) and not str(path).endswith(".lock")

            def always(*_: Any, **__: Any) -> bool:
                return True

            for place, name in ((builtins, "open"), (io, "open")):
                counting(place, name, for_writing)
            counting(os, "open", with_flags)
            for name in ("mkdir", "replace", "rename", "symlink"):
                counting(os, name, always)
            for place in (safetensors.numpy, safetensors.torch, fake):
                counting(place, "save_file", always, argument=1)
            yield self
