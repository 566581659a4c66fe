"""From a question to prompt ids: one rendering, used for both models of a pair.

A tokenizer with a chat template gets the question as a user's message; one without reads the
question and a new line. Several messages are a conversation, or a paragraph each. What they say
(system texts, examples, hints) is `context`'s business.
"""

from __future__ import annotations

from typing import Any

from potstill.errors import PotstillError
from potstill.types import Ids

# Templates that know these read them: no hidden reasoning before the answer, and one date for
# ever, so that prompts do not change at midnight (Llama's template falls back to this one).
FIXED = {"enable_thinking": False, "date_string": "26 Jul 2024"}

Messages = tuple[tuple[str, str], ...]  # (role, text): "system", "user" or "assistant"


def render(tokenizer: Any, asked: str | Messages) -> Ids:
    """Prompt ids (P,) for a question or a conversation, ready for a completion to follow."""
    text = written(tokenizer, asked)
    special = not tokenizer.chat_template  # a template writes its own
    return tuple(tokenizer(text, add_special_tokens=special).input_ids)


def written(tokenizer: Any, asked: str | Messages) -> str:
    """The text that a prompt's ids stand for.

    Raises:
        PotstillError: the chat template has no place for one of the roles.
    """
    said = (("user", asked),) if isinstance(asked, str) else asked
    if not tokenizer.chat_template:
        return plain(said)
    turns = [{"role": role, "content": text} for role, text in said]
    try:
        return str(
            tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **FIXED
            )
        )
    except Exception as error:  # jinja2's own, whose names are no part of transformers' interface
        if isinstance(asked, str) or type(error).__name__ != "TemplateError":
            raise
        roles = ", ".join(dict.fromkeys(role for role, _ in said))
        raise PotstillError(
            f"the chat template takes no conversation of {roles}: {error}",
            "leave the system text out, or write it into chain_of_thought's template",
        ) from error


def plain(asked: str | Messages) -> str:
    """A conversation without a template: one paragraph a message.

    >>> plain((("system", "Be brief."), ("user", "2 + 2?")))
    'Be brief.\\n2 + 2?\\n'
    """
    said = (("user", asked),) if isinstance(asked, str) else asked
    return "".join(f"{text}\n" for _, text in said)
