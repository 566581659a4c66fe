"""Digests of models: of the files that a model is loaded from, or of a hub name's revision.

The digest of a large file is kept under its path, size, inode and times, so that weights are read
once and not before every run: a file that was written since has other times. A service's models
have no digest.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path

from potstill.digests import DIGITS, digest_of, file_digest
from potstill.engines.model_files import read_json
from potstill.errors import PotstillError

READ = re.compile(r".*\.(json|safetensors|jinja|model|txt|tiktoken|py|spm|vocab|bpe)")
TEMPLATES = "additional_chat_templates"
LARGE = 2**26  # bytes: half a second of reading
_DIGEST = re.compile(rf"[0-9a-f]{{{DIGITS}}}")


def model_digest(name: str, kept: Path | None = None) -> str:
    """The digest of a model's files and of its base's, if it is an adapter.

    Args:
        name: a folder or a hub name.
        kept: a folder for the digests of large files; None: all files are read.

    Returns:
        For a hub name, "revision COMMIT" of the files on this machine, or else on the hub; "" if
        neither is known.

    Raises:
        PotstillError: a file of the folder cannot be read.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return _revision(name)
    paths = [path for path in folder.iterdir() if READ.fullmatch(path.name)]
    paths += [*(folder / TEMPLATES).glob("*.jinja")]
    parts = []
    for path in sorted(paths):
        try:
            digest = _digest_of_file(path, kept) if path.is_file() else None
        except OSError as error:
            raise PotstillError(
                f'cannot read "{path}": {error.strerror}', "check the disk and the permissions"
            ) from None
        if digest:
            parts.append(f"{path.relative_to(folder)} {digest}")
    adapter = folder / "adapter_config.json"
    if adapter.is_file() and isinstance(base := read_json(adapter).get(BASE), str):
        parts.append(f"base {model_digest(base, kept)}")
    return digest_of("\n".join(parts))


BASE = "base_model_name_or_path"


def _digest_of_file(path: Path, kept: Path | None) -> str | None:
    state = path.stat()
    if kept is None or state.st_size < LARGE:
        return file_digest(path)
    times = state.st_mtime_ns, state.st_ctime_ns
    key = digest_of(repr((str(path.resolve()), state.st_size, state.st_ino, *times)))
    note = kept / key
    with contextlib.suppress(OSError, ValueError):  # unreadable: the file is read again
        if _DIGEST.fullmatch(known := note.read_text(encoding="utf-8")):
            return known
    digest = file_digest(path)
    after = path.stat()
    if digest and (after.st_mtime_ns, after.st_ctime_ns) == times:
        with contextlib.suppress(OSError):  # no place to keep it: it is read each time
            kept.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=kept)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(digest)
            Path(draft).replace(note)
    return digest


def _revision(name: str) -> str:
    """The commit of a hub model, on this machine or else on the hub."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    for file in ("config.json", "adapter_config.json"):
        with contextlib.suppress(ValueError):  # not the name of a model
            path = try_to_load_from_cache(name, file)
            if isinstance(path, str) and "snapshots" in Path(path).parts:
                parts = Path(path).parts
                return f"revision {parts[parts.index('snapshots') + 1]}"
    try:
        return f"revision {HfApi().model_info(name).sha}"
    except Exception:  # no network or no such model: loading it gives the reason
        return ""
