"""The embedded pairs: tiny students and teachers that come with the package.

Ordinary model folders, a few megabytes together, trained by `zoo.build` on generated arithmetic.
They let every part of potstill run anywhere in seconds; what they show is about tiny models.

`tiny-context` and `tiny-format` are one model: alone it answers in words of its own and is often
wrong. With the solution in its context it is right, in the task's format; told that format it uses
it, and is as often wrong as before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAIRS: dict[str, str] = {
    "tiny-qwen": "Qwen3 architecture, byte-level BPE, ChatML",
    "tiny-llama": "Llama architecture, metaspace BPE with byte fallback, no chat template",
    "tiny-cross": "tiny-llama's student under a Qwen3 teacher with another tokenizer",
    "tiny-context": "one Qwen3 model twice, the teacher reads a hint: a context that teaches",
    "tiny-format": "the same model, the teacher reads a format: a context that does not",
}
DEFAULT = ("tiny-qwen", "tiny-llama")  # what a study takes that names no pair

# What the teacher alone reads, see `context`; short, because tiny models read byte by byte.
CONTEXTS: dict[str, dict[str, Any]] = {
    "tiny-context": {"hint": {"template": "Hint:\n{hint}\n{question}"}},
    "tiny-format": {"system": "Use ####."},
}
# Whose folder holds a model that a pair shares with another one, or with itself.
BORROWED = {
    ("tiny-cross", "student"): ("tiny-llama", "student"),
    ("tiny-context", "teacher"): ("tiny-context", "student"),
    ("tiny-format", "teacher"): ("tiny-context", "student"),
    ("tiny-format", "student"): ("tiny-context", "student"),
}
MODELS = tuple(
    (pair, role)
    for pair in PAIRS
    for role in ("teacher", "student")
    if (pair, role) not in BORROWED
)


def model(pair: str, role: str) -> tuple[str, str]:
    """The pair and role whose folder holds a model."""
    return BORROWED.get((pair, role), (pair, role))


def folder(pair: str, role: str) -> str:
    """Path of an embedded model: role is "student" or "teacher"."""
    return str(Path(__file__).parent.joinpath(*model(pair, role)))


def place(name: str) -> str:
    """The folder that `PAIR/ROLE` names, or the name itself.

    >>> place("Qwen/Qwen3-4B"), Path(place("tiny-qwen/student")).is_dir()
    ('Qwen/Qwen3-4B', True)
    """
    pair, _, role = name.partition("/")
    return folder(pair, role) if pair in PAIRS and role in ("student", "teacher") else name
