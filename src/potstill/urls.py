"""Addresses with their secrets cut out, for everything that is written or shown.

A secret is the user info of a URL (`user:password@`), the value of a query's parameter whose name
or look is that of a secret (`?X-Amz-Signature=`, `?token=`), and the fragment. `Url` is a text
without them that still has the whole address for whatever connects. `without_secrets` cuts them
out of any text, such as the message of a library, together with every secret that this process has
met and the keys in its environment. Secrets in the path of a URL are not recognised, and numbers
are cut out with their URL alone, as they would be missing elsewhere.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

from pydantic_core import CoreSchema, core_schema

CUT = "..."  # in the place of a secret
URL = re.compile(r"[A-Za-z][\w+.:-]{0,64}://(\S+$)?")  # the group: a text that is nothing else
_NAMES = (
    "key|token|secret|pass|pwd|signature|credential|auth|session|jwt|ticket|(?<![a-z])(?:sig|code)"
)
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
_OPAQUE = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w+/=%~.-]{16,}")  # a value that looks random
_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?")  # a host and a port
_VARIABLE = re.compile(r"(KEY(_ID)?|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_NUMBER = re.compile(r"[\d.,+-]+")
# In a text. Repeats are limited, so that the time is linear in its length.
_IN_TEXT = re.compile(r"(?<=://)[^\s\"'<>`]+")
_QUERY = re.compile(
    rf"([?&][\w.%-]{{0,64}}?(?:{_NAMES})[\w.%-]{{0,64}}?=)(?!\.\.\.)[^\s&#\"'<>`]+", re.IGNORECASE
)
_HEADER = re.compile(
    r"(authorization[\"']?\s{0,4}[:=]\s{0,4}[\"']?(?:basic |bearer )?)[^\s\"',}]+", re.IGNORECASE
)
_ENDS = ").,;:]}"  # of a sentence, not of a URL in it


class Url(str):
    """A URL whose text is cut, however it is written or compared; `full` is the whole of it.

    >>> url = Url("https://me:hunter2@host/study?sig=abc&part=1")
    >>> url, url.full
    ('https://...@host/study?sig=...&part=1', 'https://me:hunter2@host/study?sig=abc&part=1')
    """

    full: str

    def __new__(cls, url: str) -> Url:
        if isinstance(url, Url):
            return url
        made = super().__new__(cls, cut(url))
        made.full = url
        remember(url)
        return made

    def __reduce__(self) -> tuple[type[Url], tuple[str]]:
        return Url, (self.full,)  # worker processes need all of it

    @property
    def incomplete(self) -> bool:
        """True if secrets were cut out of it before, so that nothing can connect to it."""
        marks = (f"//{CUT}@", *(f"{mark}{CUT}" for mark in "?&;=#"))
        return any(mark in self.full for mark in marks)

    def below(self, name: str) -> Url:
        """The URL of a name below this one."""
        return Url(f"{self.full.rstrip('/')}/{name}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        def read(value: Any, text: Any) -> Url:
            return value if isinstance(value, Url) else cls(text(value))

        def write(url: Url, info: core_schema.SerializationInfo) -> str:
            return url.full if (info.context or {}).get("urls") == "full" else url

        return core_schema.no_info_wrap_validator_function(
            read,
            core_schema.str_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(write, info_arg=True),
        )


def full(url: str) -> str:
    """The whole address of a URL, cut or not."""
    return url.full if isinstance(url, Url) else url


def as_urls(value: Any) -> Any:
    """A table in which every text that is a URL with secrets is a `Url`."""
    if isinstance(value, Mapping):
        return {key: as_urls(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_urls(inner) for inner in value]
    match = URL.match(value) if isinstance(value, str) else None
    if match:
        remember(value)
    return Url(value) if match and match[1] and cut(value) != value else value


def whole(value: Any) -> Any:
    """A table with the whole address of every `Url`."""
    if isinstance(value, Mapping):
        return {key: whole(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [whole(inner) for inner in value]
    return full(value) if isinstance(value, str) else value


def cut(url: str) -> str:
    """A URL without its secrets; cutting it again changes nothing.

    >>> cut("s3://KEY:SEC/RET@bucket/x"), cut("http://host:8000/a@b?versions=2")
    ('s3://...@bucket/x', 'http://host:8000/a@b?versions=2')
    """
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{_cut_rest(rest)}" if mark else url


def _cut_rest(rest: str) -> str:
    """The part of a URL after "://"."""
    user, rest = split_user(rest)
    place, query, fragment = _split(rest)
    if query:
        query = "?" + "".join(map(_cut_parameter, re.split("([&;])", query[1:])))
    if fragment:
        fragment = f"#{CUT}" if len(fragment) > 1 else fragment
    return (f"{CUT}@" if user else "") + place + query + fragment


def split_user(rest: str) -> tuple[str, str]:
    """The user info, which may have characters that should have been quoted, and what follows."""
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        user, _, after = authority.rpartition("@")
        return user, after + rest[len(authority) :]
    if not _AUTHORITY.fullmatch(authority) and "@" in rest:
        user, _, after = rest.rpartition("@")
        return user, after
    return "", rest


def _split(rest: str) -> tuple[str, str, str]:
    """Place, query and fragment, the latter two with their marks."""
    before, mark, fragment = rest.partition("#")
    place, question, query = before.partition("?")
    return place, question + query, mark + fragment


def _cut_parameter(text: str) -> str:
    name, equals, value = text.partition("=")
    if not equals:
        return CUT if _OPAQUE.fullmatch(name) else name
    secret = value and (_SECRET_NAME.search(name) or _OPAQUE.fullmatch(value))
    return f"{name}={CUT}" if secret else text


_secrets: frozenset[str] = frozenset()  # that this process has met


def remember(url: str) -> None:
    """Cut the secrets of a URL out of messages also where they are without their URL."""
    global _secrets
    if new := frozenset(_secrets_of(url)) - _secrets:
        _secrets |= new


def remember_variables(variables: Mapping[str, object]) -> None:
    """Cut the values of environment variables out of messages, if their names are those of keys."""
    global _secrets
    _secrets |= frozenset(_of_variables({k: v for k, v in variables.items() if isinstance(v, str)}))


def _secrets_of(url: str) -> Iterator[str]:
    user, rest = split_user(url.partition("://")[2])
    name, colon, password = user.partition(":")
    yield from _forms(password)
    if colon and password:
        yield from _forms(user)
        yield base64.b64encode(unquote(user).encode("utf-8", "replace")).decode()
    if not password or _OPAQUE.fullmatch(name):
        yield from _forms(name)
    _, query, fragment = _split(rest)
    for part in re.split("[&;]", query[1:]):
        key, equals, value = part.partition("=")
        if _cut_parameter(part) != part:
            yield from _forms(value if equals else key)
    yield from _forms(fragment[1:])


def _forms(secret: str) -> Iterator[str]:
    if len(secret) >= 4 and secret != CUT and not _NUMBER.fullmatch(secret):
        yield from {secret, unquote(secret), quote(secret, safe=""), quote(secret)}


def _of_variables(variables: Mapping[str, str]) -> Iterator[str]:
    for name, value in variables.items():
        if _VARIABLE.search(name) and len(value) >= 8 and not _NUMBER.fullmatch(value):
            yield value
        if "://" in value and "@" in value:
            yield from _secrets_of(value)


def without_secrets(text: str) -> str:
    """A text without secrets: those of URLs in it, of URLs met before, and of the environment.

    >>> without_secrets("no answer from https://me:hunter2@host/api?token=1, and none later")
    'no answer from https://...@host/api?token=..., and none later'
    """
    for secret in sorted({*_secrets, *_of_variables(os.environ)}, key=len, reverse=True):
        if secret not in text:
            continue
        if len(secret) < 8:  # may be a word, or a part of one
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", CUT, text)
        else:
            text = text.replace(secret, CUT)
    if "://" in text:
        text = _IN_TEXT.sub(_cut_match, text)
    return _HEADER.sub(rf"\1{CUT}", _QUERY.sub(rf"\1{CUT}", text))


def _cut_match(match: re.Match[str]) -> str:
    whole = match[0].rstrip(_ENDS)
    return _cut_rest(whole) + match[0][len(whole) :]
