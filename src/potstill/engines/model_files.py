"""Read the files of a model's folder, which may be damaged: JSON, and the headers of weights.

An interrupted download leaves a short file, a clone without Git LFS a pointer in place of the file,
a failed request a web page. Each is named here, before a library reads it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
POINTER = b"version https://git-lfs.github.com"
AGAIN = "download it again, or copy it again from the original model"
UNFINISHED = ".aria2", ".part", ".crdownload", ".incomplete"  # files next to a download
HEADER = 100_000_000  # bytes; the largest header that safetensors reads


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        PotstillError: the file is damaged, or has something else than an object.
    """
    raw = path.read_bytes()
    if not raw.strip():
        raise _damaged(path, "it is empty")
    if raw.startswith(POINTER):
        raise _pointer(path)
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, too deep
        raise _damaged(path, str(error)) from None
    if not isinstance(value, dict):
        raise _damaged(path, f"it has a {type(value).__name__} instead of an object")
    return value


def check_text(path: Path) -> None:
    """Raise a `PotstillError` if a text file is a pointer of Git LFS."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise _pointer(path)


@dataclass(frozen=True)
class Stored:
    """A tensor as the header of its file describes it."""

    file: Path
    dtype: str  # "F32", "BF16", "I8", ...
    shape: tuple[int, ...]
    start: int  # of its bytes after the header
    end: int


def stored_weights(folder: Path) -> dict[str, Stored]:
    """Read the names, types and shapes of a model's weights; no weights.

    Args:
        folder: of a whole model.

    Returns:
        Tensors by name; empty if there is no safetensors file.

    Raises:
        PotstillError: a file is missing or damaged, or the index does not fit the files.
    """
    single, index = folder / WEIGHTS, folder / INDEX
    mapped = _mapped(index) if index.is_file() else {}
    if not single.is_file():
        return _sharded(index, mapped)
    others = sorted({file for file in mapped.values() if file != WEIGHTS})
    if others and (folder / others[0]).is_file():
        raise PotstillError(
            f'"{folder}" has two sets of weights: {WEIGHTS}, and {others[0]} of {INDEX}',
            "remove the one that is not this model's",
        )
    return header(single)


def _mapped(index: Path) -> dict[str, str]:
    """The file of each tensor, as an index lists them."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise _damaged(index, "the index has no weight_map")
    for name in files.values():
        if not isinstance(name, str) or Path(name).name != name or Path(name).suffix == ".json":
            raise _damaged(index, f"the index names files of its folder, not {name!r}")
    return files


def _sharded(index: Path, mapped: Mapping[str, str]) -> dict[str, Stored]:
    """The tensors of several files, each in the file that the index names, and only there."""
    tensors: dict[str, Stored] = {}
    for name in sorted(set(mapped.values())):
        path = index.parent / name
        if not path.is_file():
            raise PotstillError(
                f'"{path}" is missing: {INDEX} names it', "download it, or the whole model again"
            )
        for key, stored in header(path).items():
            if key in tensors:
                raise PotstillError(
                    f'"{index.parent}" has {key} twice, in {tensors[key].file.name} and {name}',
                    AGAIN,
                )
            tensors[key] = stored
    for key, name in mapped.items():
        if key not in tensors or tensors[key].file.name != name:
            raise PotstillError(f'"{index}" does not fit its files: {key} is not in {name}', AGAIN)
    return tensors


def header(path: Path) -> dict[str, Stored]:
    """Read a safetensors file's header, and check that the file is complete.

    Returns:
        Tensors by name, in the order of their bytes.

    Raises:
        PotstillError: the file is something else, or is cut off.
    """
    size = path.stat().st_size
    for mark in UNFINISHED:
        if (other := path.with_name(path.name + mark)).exists():
            raise _damaged(path, f"{other.name} is there, so its download has not ended")
    with path.open("rb") as file:
        start = file.read(64)
        if not size:
            raise _damaged(path, "the safetensors file is empty")
        if start.startswith(POINTER):
            raise _pointer(path)
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > HEADER or start[8:9] != b"{":
            raise _damaged(path, f"it is not a safetensors file, it begins with {start[:16]!r}")
        file.seek(8)
        raw = file.read(length)
    if len(raw) < length:
        raise _damaged(path, f"the safetensors file ends after {size:,} bytes, in its header")
    try:
        table = json.loads(raw.decode("utf-8"))
        table.pop("__metadata__", None)
        listed = [(key, _stored(path, entry)) for key, entry in table.items()]
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError) as error:
        raise _damaged(path, f"the safetensors file has a wrong header ({error})") from None
    listed.sort(key=lambda item: item[1].end)
    end = listed[-1][1].end if listed else 0
    if size != 8 + length + end:
        raise _damaged(
            path, f"the safetensors file has {size:,} bytes, its header lists {8 + length + end:,}"
        )
    return dict(listed)


def _stored(path: Path, entry: Mapping[str, Any]) -> Stored:
    start, end = map(int, entry["data_offsets"])
    return Stored(path, str(entry["dtype"]), tuple(map(int, entry["shape"])), start, end)


def check_numbers(path: Path, table: Mapping[str, Any], key: str = "") -> None:
    """Raise a `PotstillError` if a number of a config is not finite.

    Args:
        path: the file, for messages.
        table: its object, or one within.
        key: of that object.
    """
    for name, value in table.items():
        for part in value if isinstance(value, list) else [value]:
            where = f"{key}{name}"
            if isinstance(part, dict):
                check_numbers(path, part, f"{where}.")
            unlimited = name.startswith("time_step") and part == math.inf  # as Mamba's steps
            if isinstance(part, float) and not math.isfinite(part) and not unlimited:
                raise _damaged(path, f"{where} is a finite number, not {part}")


def _damaged(path: Path, reason: str) -> PotstillError:
    return PotstillError(f'"{path}" is damaged: {reason}', AGAIN)


def _pointer(path: Path) -> PotstillError:
    return PotstillError(
        f'"{path}" is a pointer of Git LFS in place of the file',
        "run `git lfs pull` in the folder, or download the model again",
    )
