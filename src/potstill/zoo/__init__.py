"""The embedded pairs: two tiny students and teachers that come with the package.

Ordinary model folders, a few megabytes together, trained by `zoo.build` on generated arithmetic.
They let every part of potstill run anywhere in seconds; what they show is about tiny models.
"""

from __future__ import annotations

from pathlib import Path

PAIRS: dict[str, str] = {
    "tiny-qwen": "Qwen3 architecture, byte-level BPE, ChatML",
    "tiny-llama": "Llama architecture, metaspace BPE with byte fallback, no chat template",
}


def folder(pair: str, role: str) -> str:
    """Path of an embedded model: role is "student" or "teacher"."""
    return str(Path(__file__).parent / pair / role)
