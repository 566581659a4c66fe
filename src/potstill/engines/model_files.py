"""Read the JSON files of a model's folder, which may be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        PotstillError: the file is damaged, or has something else than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise _damaged(path, str(error)) from None
    if not isinstance(value, dict):
        raise _damaged(path, f"it has a {type(value).__name__} instead of an object")
    return value


def _damaged(path: Path, reason: str) -> PotstillError:
    return PotstillError(f'"{path}" is damaged: {reason}', "copy it again from the original model")
