"""Removes secrets from messages of trackers, which are written to a study's folder."""

from __future__ import annotations

import os
import re

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)  # in names of variables


def without_secrets(text: str) -> str:
    """A message without the keys in this process's environment and the credentials of URLs.

    >>> without_secrets("no answer from https://me:hunter2@host/api")
    'no answer from https://...@host/api'
    """
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 4:
            text = text.replace(value, "...")
    return re.sub(r"(?<=://)[^/@\s]+(?=@)", "...", text)
