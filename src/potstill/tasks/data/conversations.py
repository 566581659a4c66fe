"""Lists of messages: `role` and `content`, or ShareGPT's `from` and `value`.

Roles of tools, and what else a model cannot be shown as text, are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.errors import PotstillError, did_you_mean
from potstill.fields import brief
from potstill.problems import Messages
from potstill.tasks.data.values import text_of

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bard", "bing"), "assistant"),
}
TOOLS = ("tool", "tools", "function", "observation", "function_call", "tool_response", "ipython")
# Parts of a message besides its text, which the prompt would lack.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls", "function_call", "tool_call_id", "tool_responses")
UNREAD = (*CALLS, *THOUGHTS, "images", "audio", "video")
HINT = (
    'a conversation is a list of messages such as {"role": "user", "content": "..."}, the roles '
    "system, user and assistant"
)


def messages_of(value: Any, name: str, where: str) -> Messages:
    """The messages of a conversation; an empty system text is left out.

    Args:
        value: of a row.
        name: of its column.
        where: the place of its row.

    Raises:
        PotstillError: it is not a list of messages with text.
    """
    if not isinstance(value, list | tuple) or not value:
        raise PotstillError(
            f'{where}: "{name}" must be a list of messages, got {brief(value)}', HINT
        )
    messages = []
    for n, message in enumerate(value):
        place = f'{where}: message {n + 1} of "{name}"'
        if not isinstance(message, Mapping):
            raise PotstillError(f"{place} is not an object, got {brief(message)}", HINT)
        role = _role(message, place)
        content = message["content"] if "content" in message else message.get("value")
        if role == "system" and n > 0:
            raise PotstillError(f"{place} is a system text, which is the first message", HINT)
        if role == "system" and (content is None or content == ""):
            continue
        messages.append((role, _content(content, place)))
    return tuple(messages)


def _role(message: Mapping[str, Any], place: str) -> str:
    role = message["role"] if "role" in message else message.get("from")
    unread = [key for key in UNREAD if message.get(key)]
    if role in TOOLS or unread:
        what = f'has "{unread[0]}"' if unread else f'has the role "{role}"'
        hint = "leave these conversations out, or write the call and its result as text"
        if unread and unread[0] in THOUGHTS:
            hint = "write the thought into the content, between <think> and </think>"
        raise PotstillError(
            f"{place} {what}, and prompts have system, user and assistant texts alone", hint
        )
    if not isinstance(role, str) or role.strip().lower() not in ROLES:
        keys = ", ".join(map(str, message)) or "none"
        hint = did_you_mean(str(role), ROLES, "roles") if role is not None else HINT
        raise PotstillError(f"{place} has the role {brief(role)} (keys: {keys})", hint)
    return ROLES[role.strip().lower()]


def _content(content: Any, place: str) -> str:
    """The text of a message, also where it is a list of parts."""
    if isinstance(content, list | tuple) and content:
        parts = []
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind != "text":
                got = f'the type "{kind}"' if kind else brief(part)
                raise PotstillError(f"{place} has a part that is not text, got {got}", HINT)
            parts.append(text_of(part.get("text"), "text", place, HINT))
        return "".join(parts)
    return text_of(content, "content", place, HINT)


def split(messages: Messages, name: str, where: str) -> tuple[Messages, str | None]:
    """The prompt of a conversation, which ends in a user's message, and the reply if there is one.

    Raises:
        PotstillError: no user's message is followed by the reply or the end.
    """
    reply = messages[-1][1] if messages and messages[-1][0] == "assistant" else None
    prompt = messages if reply is None else messages[:-1]
    if not prompt or prompt[-1][0] != "user":
        roles = ", ".join(role for role, _ in messages) or "none"
        raise PotstillError(
            f'{where}: "{name}" ends in a user\'s message, and a reply where there is one; its '
            f"roles are {roles}"[:400],
            "leave it out, or end it with the user's message that is to be answered",
        )
    return prompt, reply
