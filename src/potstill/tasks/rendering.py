"""From a question to prompt ids: one rendering, used for both models of a pair.

A tokenizer with a chat template gets the question as a user's message; one without gets the
question and a new line. Several messages are a conversation, or a paragraph each. Their contents
(system texts, examples, hints) are made in `context`.
"""

from __future__ import annotations

from typing import Any

from potstill.errors import PotstillError
from potstill.types import Ids

# Templates that know these read them: no hidden reasoning before the answer, and one date for
# ever, so that prompts do not change at midnight (Llama's template falls back to this one).
FIXED = {"enable_thinking": False, "date_string": "26 Jul 2024"}

Messages = tuple[tuple[str, str], ...]  # (role, text): "system", "user" or "assistant"


def render(tokenizer: Any, text: str | Messages) -> Ids:
    """Prompt ids (P,) for a question or a conversation, ready for a completion to follow."""
    rendered = written(tokenizer, text)
    special = not tokenizer.chat_template  # a template writes its own
    return tuple(tokenizer(rendered, add_special_tokens=special).input_ids)


def written(tokenizer: Any, text: str | Messages) -> str:
    """The text of a prompt, before it is tokenized.

    Raises:
        PotstillError: the chat template has no place for one of the roles.
    """
    messages = (("user", text),) if isinstance(text, str) else text
    if not tokenizer.chat_template:
        return plain(messages)
    turns = [{"role": role, "content": content} for role, content in messages]
    try:
        return str(
            tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **FIXED
            )
        )
    except Exception as error:  # jinja2's own, whose names are not part of transformers' interface
        if isinstance(text, str) or type(error).__name__ != "TemplateError":
            raise
        roles = ", ".join(dict.fromkeys(role for role, _ in messages))
        raise PotstillError(
            f"the chat template does not accept a conversation of {roles}: {error}",
            "leave the system text out, or write it into chain_of_thought's template",
        ) from error


def plain(text: str | Messages) -> str:
    """A conversation without a template: one paragraph a message.

    >>> plain((("system", "Be brief."), ("user", "2 + 2?")))
    'Be brief.\\n2 + 2?\\n'
    """
    messages = (("user", text),) if isinstance(text, str) else text
    return "".join(f"{content}\n" for _, content in messages)
