"""From what `--on` says to a connection to Ray, or to a plain refusal in bounded time.

Ray itself waits two minutes for an address that does not answer and then ends the process; so the
address is asked first, by an ordinary connection and by gRPC's greeting.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
from collections.abc import Iterator
from typing import Any

from potstill.errors import PotstillError, did_you_mean
from potstill.settings import RaySettings
from potstill.study.executors.local import allowed

PLACES = ("local", "ray")
ADDRESS = re.compile(r"(?P<client>ray://)?(?P<host>[\w.-]+|\[[\da-fA-F:]+\]):(?P<port>\d{1,5})$")
PATIENCE = 10.0  # seconds for an address to answer
STORE = 100_000_000  # bytes of Ray's object store, where it is started here: cells pass no objects


def check_place(on: str) -> None:
    """Refuse what is no place of work, before anything is opened."""
    if on not in PLACES and not ADDRESS.match(on):
        hint = did_you_mean(on, PLACES, "places")
        raise PotstillError(
            f'--on takes local, ray, ray://HOST:PORT or HOST:PORT, got "{on}"',
            f"{hint}; an address is written 10.0.0.1:6379 or ray://10.0.0.1:10001",
        )


@contextlib.contextmanager
def connected(on: str, settings: RaySettings) -> Iterator[Any]:
    """Ray itself, connected to the cluster that `on` names, or to one that is started here.

    Raises:
        PotstillError: Ray is not installed, nothing answers, or Ray refuses.
    """
    check_place(on)
    try:
        import grpc
        import ray
    except ImportError:
        raise PotstillError(
            f"--on {on} needs Ray, which is not installed", "pip install 'potstill[ray]'"
        ) from None
    address = os.environ.get("RAY_ADDRESS") if on == "ray" else on
    if address:
        _greet(address, grpc)
    try:
        _init(ray, address, settings)
    except (Exception, SystemExit) as error:
        said = str(error).strip().split("\n")[0]
        raise PotstillError(
            f"Ray cannot be used on {address or 'this machine'}: {type(error).__name__}: {said}",
            "the cluster needs the same versions of Python and Ray; where it asks for a token, set "
            "RAY_AUTH_MODE=token; runtime_env is as Ray has it",
        ) from error
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Ray says on stdout what nodes complain of
            yield ray
    finally:
        ray.shutdown()


def _init(ray: Any, address: str | None, settings: RaySettings) -> None:
    shared: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if settings.runtime_env:
        shared["runtime_env"] = settings.runtime_env
    if address:
        ray.init(address, **shared)
        return
    cores = len(allowed()) or os.cpu_count()
    try:
        sizes = {"num_cpus": cores, "object_store_memory": STORE, "include_dashboard": False}
        ray.init(**sizes, **shared)
    except ValueError as error:  # a cluster runs here: it has its own sizes
        if "existing cluster" not in str(error):
            raise
        ray.init(**shared)


def _greet(address: str, grpc: Any) -> None:
    """Raise where an address does not answer as a Ray server does."""
    found = ADDRESS.match(address)
    if not found:
        return  # from the environment, and Ray's to read
    port = "10001 with ray://, 6379 without, unless it was started with others"
    host, target = found["host"].strip("[]"), f"{found['host']}:{found['port']}"
    try:
        socket.create_connection((host, int(found["port"])), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise PotstillError(
            f"nothing answers at {address}: {error}",
            f"is the cluster up, and reached from here? The port is {port}",
        ) from None
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # its certificates are Ray's business
    channel = grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)])  # as Ray has it
    try:
        grpc.channel_ready_future(channel).result(timeout=PATIENCE)
    except grpc.FutureTimeoutError:
        raise PotstillError(
            f"what answers at {address} is no Ray server", f"the port is {port}"
        ) from None
    finally:
        channel.close()
