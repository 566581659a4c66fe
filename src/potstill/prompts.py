"""From a question to prompt ids: one rendering, used for both models of a pair.

A tokenizer with a chat template gets the question as a user's message; one without reads the
question and a new line. It leaves out system prompts and few-shot examples.
"""

from __future__ import annotations

from typing import Any

from potstill.types import Ids

# Templates that know these read them: no hidden reasoning before the answer, and one date for
# ever, so that prompts do not change at midnight (Llama's template falls back to this one).
FIXED = {"enable_thinking": False, "date_string": "26 Jul 2024"}


def render(tokenizer: Any, question: str) -> Ids:
    """Prompt ids (P,) for one question, ready for a completion to follow."""
    if not tokenizer.chat_template:
        return tuple(tokenizer(question + "\n").input_ids)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        tokenize=False,
        add_generation_prompt=True,
        **FIXED,
    )
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)
