"""The tokenizers of a pair: whether they are one, ids without a row, and the template."""

from __future__ import annotations

import dataclasses
from typing import Any

from potstill.errors import PotstillError
from potstill.tasks.rendering import written
from potstill.types import ModelSpec

SAMPLE_TEXTS = ("Tom has 12 apples.", "3.5 + 0.25 = 3.75\n", "  naïve façade — 你好", "#### 1,234")


def difference_of(student_tok: Any, teacher_tok: Any, rows: int) -> str:
    """Describe a difference between two tokenizers, in ids that both heads have; empty if none."""
    ids, teacher_ids = (
        {token: id for token, id in tok.get_vocab().items() if id < rows}
        for tok in (student_tok, teacher_tok)
    )
    tokens = ids.keys() | teacher_ids.keys()
    count = sum(ids.get(token) != teacher_ids.get(token) for token in tokens)
    if count:
        return f"{count} tokens have different ids"
    texts = [t for t in SAMPLE_TEXTS if student_tok(t).input_ids != teacher_tok(t).input_ids]
    return f"they split {texts[0]!r} differently" if texts else ""


def without_row(name: str, tok: Any, rows: int) -> tuple[str, ...]:
    """A note about ids of a tokenizer that no row of the head belongs to."""
    beyond = sorted(id for id in tok.get_vocab().values() if id >= rows)
    if not beyond:
        return ()
    token = tok.convert_ids_to_tokens(beyond[0])
    return (
        f'{len(beyond)} ids of the tokenizer of "{name}" have no row in a head of {rows} (first: '
        f"{beyond[0]}, {token}): they are never sampled, and no prompt may have one",
    )


def one_template(student_tok: Any, teacher_tok: Any, spec: ModelSpec) -> tuple[str, ...]:
    """Make the student's tokenizer render prompts for both models, and return a note about it."""
    if not student_tok.chat_template and teacher_tok.chat_template:
        student_tok.chat_template = teacher_tok.chat_template
        return ("the student has no chat template: the teacher's renders prompts for both",)
    both = student_tok.chat_template and teacher_tok.chat_template
    if both and student_tok.chat_template != teacher_tok.chat_template:
        bare = dataclasses.replace(spec, template={})
        try:
            differ = written(student_tok, "?", bare) != written(teacher_tok, "?", bare)
        except PotstillError:  # of the teacher's own: it is not used
            differ = True
        if differ:
            return ("chat templates differ: the student's renders prompts for both",)
    return ()
