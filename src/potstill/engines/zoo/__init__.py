"""The embedded pairs: tiny students and teachers that are part of the package.

They are ordinary model folders of a few megabytes in total, trained by `zoo.build` on generated
arithmetic. With them every part of potstill runs in seconds on any machine. Results on them hold
for tiny models only.

`tiny-context` and `tiny-format` use one model. Without a context it often answers wrongly, and not
in the task's format. With the solution as context it answers correctly and in that format. With
only the format as context it uses the format, but is wrong as often as before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAIRS: dict[str, str] = {
    "tiny-qwen": "Qwen3 architecture, byte-level BPE, ChatML",
    "tiny-llama": "Llama architecture, metaspace BPE with byte fallback, no chat template",
    "tiny-cross": "tiny-llama's student under a Qwen3 teacher with another tokenizer",
    "tiny-context": "one Qwen3 model twice; the teacher reads a hint (a useful context)",
    "tiny-format": "the same model; the teacher reads the answer format (not useful)",
}
DEFAULT = ("tiny-qwen", "tiny-llama")  # the pairs of a study that does not set any

# Contexts of the teachers, see `tasks.context`; short, because tiny models have short tokens.
CONTEXTS: dict[str, dict[str, Any]] = {
    "tiny-context": {"hint": {"template": "Hint:\n{hint}\n{question}"}},
    "tiny-format": {"system": "Use ####."},
}
# Models that share the folder of another model.
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
    """Return the pair and role whose folder contains a model."""
    return BORROWED.get((pair, role), (pair, role))


def folder(pair: str, role: str) -> str:
    """Return the path of an embedded model; `role` is "student" or "teacher"."""
    return str(Path(__file__).parent.joinpath(*model(pair, role)))


def place(name: str) -> str:
    """Return the folder of an embedded model `PAIR/ROLE`, or any other name unchanged.

    >>> place("Qwen/Qwen3-4B"), Path(place("tiny-qwen/student")).is_dir()
    ('Qwen/Qwen3-4B', True)
    """
    pair, _, role = name.partition("/")
    return folder(pair, role) if pair in PAIRS and role in ("student", "teacher") else name
