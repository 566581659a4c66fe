"""Validates values by a JSON schema, in the process that `structured` starts.

The library is imported when this module is: a validation's time limit leaves that out.
"""

from __future__ import annotations

from typing import Any

from jsonschema.validators import validator_for
from referencing import Registry


def valid(schema: Any, value: Any) -> bool:
    """True if a schema accepts a value. No address is fetched."""
    return bool(validator_for(schema)(schema, registry=Registry()).is_valid(value))
