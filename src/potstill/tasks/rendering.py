"""From a question to prompt ids: one rendering, used for training, evaluation and `potstill eval`.

A tokenizer with a chat template gets the question as a user's message; one without gets the
question and a new line. Several messages are a conversation, or a paragraph each. Their contents
(system texts, examples, hints) are made in `context`. A raw text, whose role is "text", is written
as it is, without a template. A model's placement has the arguments of its
template and the date that its template reads, so that prompts do not change at midnight.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime
import json
from collections.abc import Iterator
from typing import Any
from unittest import mock

from potstill.errors import PotstillError
from potstill.problems import Messages
from potstill.tasks.template_worker import fixed_clock
from potstill.tasks.templates import render_template
from potstill.types import Ids, ModelSpec

# Arguments of templates that know them, unless the study file sets them.
FIXED = {"enable_thinking": False}  # no hidden reasoning before the answer
RAW = "text"  # the role of a raw text
MARK = "{# rendered as in training #}"  # begins a template that has its arguments
CLOCK = "transformers.utils.chat_template_utils.datetime"  # what `strftime_now` reads

BASE = "transformers.tokenization_utils_base"  # has the method that renders in Python


def render(tokenizer: Any, text: str | Messages, spec: ModelSpec | None = None) -> Ids:
    """Prompt ids (P,) for a question or a conversation, ready for a completion to follow."""
    rendered = written(tokenizer, text, spec)
    special = not tokenizer.chat_template or is_raw(text)  # a template writes its own
    return tuple(tokenizer(rendered, add_special_tokens=special).input_ids)


def written(tokenizer: Any, text: str | Messages, spec: ModelSpec | None = None) -> str:
    """The text of a prompt, before it is tokenized.

    Args:
        tokenizer: of transformers.
        text: a question, or a conversation.
        spec: has the template's arguments and date; default: none, and the default date.

    Raises:
        PotstillError: the chat template does not accept the messages, or leaves one out.
    """
    rendered = _written(tokenizer, text, spec or ModelSpec())
    if tokenizer.chat_template and not is_raw(text):
        _check_whole(tokenizer, text, rendered)
    return rendered


def is_raw(text: str | Messages) -> bool:
    """True for a raw text instead of a conversation."""
    return not isinstance(text, str) and any(role == RAW for role, _ in text)


def _written(tokenizer: Any, text: str | Messages, spec: ModelSpec) -> str:
    """The text of a prompt, which may lack a part of the messages."""
    messages = _messages(text)
    if not tokenizer.chat_template or is_raw(messages):
        return plain(messages)
    try:
        return _rendered(tokenizer, messages, spec, prompt=True)
    except Exception as error:  # a template is a program: it can raise anything
        if isinstance(error, PotstillError):
            raise
        roles = ", ".join(dict.fromkeys(role for role, _ in messages))
        reason = str(error).strip() or type(error).__name__
        if isinstance(text, str):
            rule = f"{_named(tokenizer)} does not accept a user's message alone: {reason}"
            hint = (
                "give the model a template that renders one (chat_template.jinja in its folder), "
                "or set the arguments that it reads, engine.student.template and "
                "engine.teacher.template"
            )
        else:
            rule = f"{_named(tokenizer)} does not accept a conversation of {roles}: {reason}"
            hint = "leave the system text out, or write it into chain_of_thought's template"
        raise PotstillError(rule, hint) from error


def _rendered(tokenizer: Any, messages: Messages, spec: ModelSpec, *, prompt: bool) -> str:
    """Apply the chat template; `prompt`: an assistant's message follows."""
    turns = [{"role": role, "content": content} for role, content in messages]
    arguments = arguments_of(tokenizer, spec)
    if type(tokenizer).apply_chat_template.__module__ == BASE:
        template = tokenizer.get_chat_template(None, arguments.get("tools"))
        arguments = {**tokenizer.special_tokens_map, **arguments}
        return render_template(template, turns, arguments, day=spec.date, prompt=prompt)
    with _clock(datetime.date.fromisoformat(spec.date)):  # a class with a way of its own
        return str(
            tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=prompt, **arguments
            )
        )


def _check_whole(tokenizer: Any, text: str | Messages, rendered: str) -> None:
    """Each message must be in the prompt; white space may change, and answers lose thoughts."""
    flat = " ".join(rendered.split())
    for role, content in _messages(text):
        part = content.rpartition("</think>")[2] if role == "assistant" else content
        forms = part, json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1]
        if not any(" ".join(form.split()) in flat for form in forms):
            raise PotstillError(
                f"{_named(tokenizer)} leaves out or changes a message of the {role}: "
                f"{content[:60]!r} is not in {rendered[-100:]!r}",
                "give the model a template that writes the messages as they are"
                + (", or write the system text into the question" if role == "system" else ""),
            )


def _named(tokenizer: Any) -> str:
    name = getattr(tokenizer, "name_or_path", "")
    return f'the chat template of "{name}"' if name else "the chat template"


def arguments_of(tokenizer: Any, spec: ModelSpec) -> dict[str, Any]:
    """Arguments of a chat template; of an exported one, those that it does not have itself."""
    if str(tokenizer.chat_template).startswith(MARK):
        return dict(spec.template)
    today = datetime.date.fromisoformat(spec.date)
    return {**FIXED, "date_string": today.strftime("%d %b %Y"), **spec.template}


def with_arguments(tokenizer: Any, spec: ModelSpec) -> Any:
    """A copy of a tokenizer whose template renders the same without arguments, for an export."""
    template = tokenizer.chat_template
    if not isinstance(template, str):
        return tokenizer
    values = {k: v for k, v in arguments_of(tokenizer, spec).items() if k in template}
    sets = [f"{{% set {k} = {k} | default({json.dumps(v)}) %}}" for k, v in values.items()]
    if not sets:
        return tokenizer
    other = copy.deepcopy(tokenizer)
    other.chat_template = MARK + "".join(sets) + template.removeprefix(MARK)
    bare = dataclasses.replace(spec, template={})
    same = written(other, "A", bare) == written(tokenizer, "A", spec)
    return other if same else tokenizer


@contextlib.contextmanager
def _clock(today: datetime.date) -> Iterator[None]:
    """Fix the date of `strftime_now` in this process, for a tokenizer's own rendering."""
    with mock.patch(CLOCK, fixed_clock(today)):
        yield


def plain(text: str | Messages) -> str:
    """A conversation without a template: one paragraph a message.

    >>> plain((("system", "Be brief."), ("user", "2 + 2?")))
    'Be brief.\\n2 + 2?\\n'
    """
    return "".join(content if role == RAW else f"{content}\n" for role, content in _messages(text))


def _messages(text: str | Messages) -> Messages:
    return (("user", text),) if isinstance(text, str) else text


def check_rendering(
    name: str, tokenizer: Any, ends: frozenset[int], spec: ModelSpec | None = None
) -> None:
    """Check the prompt of a sample question for what cannot be meant.

    Args:
        name: the model, for messages.
        tokenizer: renders its prompts.
        ends: ids that end a completion.
        spec: as for `written`.

    Raises:
        PotstillError: the prompt ends in EOS, begins with two BOS, or lacks the question.
    """
    spec = spec or ModelSpec()
    _check_arguments(name, tokenizer, spec)
    texts = [_written(tokenizer, question, spec) for question in ("A", "B")]
    if texts[0] == texts[1]:
        raise PotstillError(
            f'the chat template of "{name}" renders every question as {texts[0][-60:]!r}',
            "give the model a template that renders messages whose content is a text",
        )
    ids = render(tokenizer, "A", spec)
    if ids == render(tokenizer, "B", spec):
        raise PotstillError(
            f'the tokenizer of "{name}" reads "A" and "B" as the same tokens: {ids[-8:]}',
            "copy the tokenizer files of the original model into the folder",
        )
    special = set(tokenizer.all_special_ids) | ends
    if len(ids) > 1 and ids[0] == ids[1] and ids[0] in special:
        token = tokenizer.convert_ids_to_tokens(ids[0])
        raise PotstillError(
            f'prompts of "{name}" begin with {token} twice: {tokenizer.decode(ids[:8])!r}',
            "remove it from the chat template, or from the tokenizer's post-processor",
        )
    last = _last(tokenizer, ids)
    appended = not tokenizer.chat_template and last in special
    if last in ends or appended:
        token, source = tokenizer.convert_ids_to_tokens(last), "its tokenizer appends it"
        hint = "set add_eos_token = false in tokenizer_config.json, or edit the post-processor"
        if tokenizer.chat_template:
            source = "its chat template writes it"
            hint = "give the model a template with an assistant's header (add_generation_prompt)"
        raise PotstillError(
            f'prompts of "{name}" end in {token}, after which nothing follows: {source}', hint
        )


def turn_end(tokenizer: Any, spec: ModelSpec) -> int | None:
    """The special token with which a chat template closes an answer; None if there is none."""
    if not tokenizer.chat_template:
        return None
    answer = "potstill"
    try:
        turns = ("user", "A"), ("assistant", answer)
        text = _rendered(tokenizer, turns, spec, prompt=False)
    except Exception:  # a template that renders no answers has no end of them
        return None
    after = text.rpartition(answer)[2]
    special = set(tokenizer.all_special_ids)
    ids = tokenizer(after, add_special_tokens=False).input_ids
    return next((id for id in ids if id in special), None)


def _last(tokenizer: Any, ids: Ids) -> int | None:
    """The last id of a prompt that is not white space."""
    return next((id for id in reversed(ids) if tokenizer.decode([id]).strip()), None)


def _check_arguments(name: str, tokenizer: Any, spec: ModelSpec) -> None:
    """Each argument of the study file must be one that the template reads."""
    template = str(tokenizer.chat_template or "")
    unread = [key for key in spec.template if key not in template]
    if unread:
        what = f"does not read {unread[0]}" if template else "does not exist"
        raise PotstillError(
            f'template sets {", ".join(spec.template)}, and the chat template of "{name}" {what}',
            "leave it out, or name an argument that the template reads",
        )
