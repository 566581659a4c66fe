"""Connect to a Tinker-compatible server: SDK version, address, key and waiting.

The key is read from the environment and never stored. If the connection to a server is lost, the
engine waits for the server; if the first connection fails, that is an error. Long waits are
reported on stderr.
"""

from __future__ import annotations

import base64
import http.client
import importlib.metadata
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from potstill.errors import PotstillError
from potstill.urls import Url, full, split_user

SDK = "0.25"  # the oldest that can train; SkyRL 0.4 cannot sample for a newer one
KEY = "TINKER_API_KEY"
LOCAL_KEY = "tml-dummy"  # your own servers need no key, but the SDK does

PATIENCE = 300.0  # seconds to wait for a lost server
SILENCE = 30.0  # seconds of waiting between two messages


class Unreachable(PotstillError):
    """No server answers at the address."""


def check_sdk() -> str:
    """Return the version of the installed SDK, or raise an error if it is too old."""
    try:
        version = importlib.metadata.version("tinker")
    except importlib.metadata.PackageNotFoundError:
        raise PotstillError(
            'engine "tinker" needs the tinker SDK, which is not installed',
            "pip install 'potstill[tinker]'",
        ) from None
    if _numbers(version) < _numbers(SDK):
        raise PotstillError(
            f"the tinker SDK is version {version}, potstill needs {SDK} or newer",
            "pip install 'potstill[tinker]'",
        )
    return version


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def settle(value: Any) -> Any:
    """Return the result of an SDK call, which may be a future or the result itself."""
    return value.result() if hasattr(value, "result") else value


@contextmanager
def waiting(message: Callable[[], str]) -> Iterator[None]:
    """Print a message to stderr every `SILENCE` seconds while the block runs."""
    done, start = threading.Event(), time.monotonic()

    def report() -> None:
        while not done.wait(SILENCE):
            print(f"{message()} for {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    threading.Thread(target=report, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def connect(url: str) -> Any:
    """Return the SDK's client of a server; the key is read from the environment."""
    import tinker

    address, headers = without_user(url)
    options: dict[str, Any] = {"base_url": address} if url else {}
    if headers:
        options["default_headers"] = headers
    if not os.environ.get(KEY):
        if not url:
            raise PotstillError(
                f"the hosted service needs a key, and {KEY} is not set",
                f"export {KEY}=..., or set engine.base_url to your own server",
            )
        options["api_key"] = LOCAL_KEY
    if url:
        _check_reachable(Url(url), address, headers)
    return tinker.ServiceClient(**options)


def _check_reachable(url: Url, address: str, headers: dict[str, str]) -> None:
    """Raise `Unreachable` at once if no server answers; the SDK would retry for minutes."""
    try:
        health = f"{address.rstrip('/')}/api/v1/healthz"
        with urllib.request.urlopen(urllib.request.Request(health, headers=headers), timeout=10):
            pass
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unreachable(
            f"{url} does not answer as a training service: {error}",
            "start it, and give its full address",
        ) from error


def without_user(url: str) -> tuple[str, dict[str, str]]:
    """An address without user info, which the SDK ignores, and the header that carries it.

    >>> without_user("http://me:pw@host:8000")
    ('http://host:8000', {'Authorization': 'Basic bWU6cHc='})
    """
    user, rest = split_user(full(url).partition("://")[2])
    if not user:
        return full(url), {}
    encoded = base64.b64encode(unquote(user).encode()).decode()
    return f"{url.partition('://')[0]}://{rest}", {"Authorization": f"Basic {encoded}"}


def served(url: str) -> list[str]:
    """Return the base models that a server offers."""
    check_sdk()
    client = connect(url)
    try:
        return base_models(client)
    finally:
        end_session(client)


def base_models(client: Any) -> list[str]:
    """Return the base models that a client's server offers."""
    models = settle(client.get_server_capabilities()).supported_models
    return sorted(str(getattr(model, "model_name", model)) for model in models)


def same_model(served: str, name: str) -> bool:
    """Return whether two names refer to one model: a folder may have several paths."""
    folders = os.path.isdir(served) and os.path.isdir(name)
    return served == name or (folders and os.path.samefile(served, name))


def end_session(client: Any) -> None:
    """End a session: its heartbeat stops, and the server frees its models."""
    for name in ("_session_holder", "_rest_holder", "holder"):
        holder = vars(client).get(name)
        if holder is not None and hasattr(holder, "close"):
            holder.close()


def is_lost(error: Exception) -> bool:
    """Return whether an error means that the server, the session or the connection is lost."""
    import tinker

    if isinstance(error, tinker.APIConnectionError | tinker.InternalServerError | OSError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in ("not loaded", "stale", "session", "promise", "timed out"))
