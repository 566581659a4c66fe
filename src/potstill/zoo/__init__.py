"""The embedded pairs: tiny students and teachers that come with the package.

Ordinary model folders, a few megabytes together, trained by `zoo.build` on generated arithmetic.
They let every part of potstill run anywhere in seconds; what they show is about tiny models.
"""

from __future__ import annotations

from pathlib import Path

PAIRS: dict[str, str] = {
    "tiny-qwen": "Qwen3 architecture, byte-level BPE, ChatML",
    "tiny-llama": "Llama architecture, metaspace BPE with byte fallback, no chat template",
    "tiny-cross": "tiny-llama's student under a Qwen3 teacher with another tokenizer",
}

DEFAULT = ("tiny-qwen", "tiny-llama")  # what a study runs that names no pair
BORROWED = {("tiny-cross", "student"): ("tiny-llama", "student")}
MODELS = tuple(
    (pair, role)
    for pair in PAIRS
    for role in ("teacher", "student")
    if (pair, role) not in BORROWED
)


def folder(pair: str, role: str) -> str:
    """Path of an embedded model: role is "student" or "teacher"."""
    pair, role = BORROWED.get((pair, role), (pair, role))
    return str(Path(__file__).parent / pair / role)
