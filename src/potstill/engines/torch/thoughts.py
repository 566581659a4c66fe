"""Text of a completion in which the marks of a thought are kept, although they are special tokens.

Graders read the answer after `</think>`. In Qwen3, SmolLM3 and DeepSeek R1 this is ordinary text.
Magistral and gpt-oss write special tokens instead, which a decoded text lacks: they become the
ordinary marks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from potstill.tasks.grading import THOUGHT

# Begin and end of a thought in special tokens, by the last token of the end.
MARKS = {
    "</think>": ("<think>", "</think>"),
    "[/THINK]": ("[THINK]", "[/THINK]"),
    "<|message|>": ("<|channel|>analysis", "<|channel|>final<|message|>"),
}


def decoder_of(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """A function from ids to text without special tokens, but with the marks of thoughts."""

    def plain(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    special = {str(t.content): id for id, t in tokenizer.added_tokens_decoder.items() if t.special}
    marks = [(special[last], *pair) for last, pair in MARKS.items() if last in special]
    if not marks:
        return plain
    last, begin, end = marks[0]

    def marked(ids: Sequence[int]) -> str:
        whole = str(tokenizer.decode(list(ids)))
        for place in (i for i in reversed(range(len(ids))) if ids[i] == last):
            if str(tokenizer.decode(list(ids[: place + 1]))).endswith(end):
                thought, answer = plain(ids[: place + 1]), plain(ids[place + 1 :])
                return f"{THOUGHT[0]}{thought}{THOUGHT[1]}{answer}"
        return f"{THOUGHT[0]}{plain(ids)}" if begin in whole else plain(ids)

    return marked
