"""Reaching a server that speaks Tinker's API: the SDK, the address, the key, and waiting.

The key comes from the environment and is kept nowhere. A server that was there and is gone is
waited for, a server that never was is refused at once; long waits are told on stderr.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from potstill.errors import PotstillError

SDK = "0.25"  # the oldest that can train; SkyRL 0.4 answers no newer one's samples
KEY = "TINKER_API_KEY"
LOCAL_KEY = "tml-dummy"  # servers of one's own ask for none, the SDK does

PATIENCE = 300.0  # seconds that a server which was there may take to come back
SILENCE = 30.0  # seconds of waiting after which a line says so, and again each time


class Unreachable(PotstillError):
    """No server answers at the address."""


def check_sdk() -> str:
    """The version of the installed SDK."""
    try:
        found = importlib.metadata.version("tinker")
    except importlib.metadata.PackageNotFoundError:
        raise PotstillError(
            'engine "tinker" needs the tinker SDK, which is not installed',
            "pip install 'potstill[tinker]'",
        ) from None
    if _numbers(found) < _numbers(SDK):
        raise PotstillError(
            f"the tinker SDK is version {found}, potstill needs {SDK} or newer",
            "pip install 'potstill[tinker]'",
        )
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def settle(value: Any) -> Any:
    """What a call gives in the end, whether the SDK hands out a future or waits by itself."""
    return value.result() if hasattr(value, "result") else value


@contextmanager
def waiting(words: Callable[[], str]) -> Iterator[None]:
    """Say on stderr what is waited for, where it takes long."""
    done, begun = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(SILENCE):
            print(f"{words()} for {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def connect(url: str) -> Any:
    """The SDK's client of a server; the key comes from the environment and is kept nowhere."""
    import tinker

    options: dict[str, Any] = {"base_url": url} if url else {}
    if not os.environ.get(KEY):
        if not url:
            raise PotstillError(
                f"the hosted service needs a key, and {KEY} is not set",
                f"export {KEY}=..., or give engine.base_url for a server of your own",
            )
        options["api_key"] = LOCAL_KEY
    if url:
        _answers(url)
    return tinker.ServiceClient(**options)


def _answers(url: str) -> None:
    """Refuse a server that is not there now, where the SDK would try for minutes."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/v1/healthz", timeout=10):
            pass
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"no training service answers at {url}: {error}", "start it, and give its whole address"
        ) from error


def served(url: str) -> list[str]:
    """The base models that a server offers."""
    check_sdk()
    client = connect(url)
    try:
        return base_models(client)
    finally:
        end_session(client)


def base_models(client: Any) -> list[str]:
    models = settle(client.get_server_capabilities()).supported_models
    return sorted(str(getattr(model, "model_name", model)) for model in models)


def same_model(served: str, asked: str) -> bool:
    """Whether two names mean one model: folders may be written in several ways."""
    both = os.path.isdir(served) and os.path.isdir(asked)
    return served == asked or (both and os.path.samefile(served, asked))


def end_session(client: Any) -> None:
    """End a session: its heartbeat stops, and the server frees what it held."""
    for name in ("_session_holder", "_rest_holder", "holder"):
        holder = vars(client).get(name)
        if holder is not None and hasattr(holder, "close"):
            holder.close()
