"""Connects to the Ray cluster that `--on` names, and reports in bounded time if that fails.

Ray waits two minutes for an address that does not answer, and then ends the process. Therefore
the address is tested first, with a plain connection and gRPC's handshake.
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
from potstill.study.executors.local import available_cores

NAMES = ("local", "ray")
ADDRESS = re.compile(r"(?P<client>ray://)?(?P<host>[\w.-]+|\[[\da-fA-F:]+\]):(?P<port>\d{1,5})$")
TIMEOUT = 10.0  # seconds for an address to answer
# Bytes of Ray's object store when it is started here: runs exchange no objects.
OBJECT_STORE = 100_000_000


def check_address(on: str) -> None:
    """Validate the value of --on without opening anything."""
    if on not in NAMES and not ADDRESS.match(on):
        hint = did_you_mean(on, NAMES, "values")
        raise PotstillError(
            f'--on takes local, ray, ray://HOST:PORT or HOST:PORT, got "{on}"',
            f"{hint}; an address is written 10.0.0.1:6379 or ray://10.0.0.1:10001",
        )


@contextlib.contextmanager
def connection(on: str, settings: RaySettings) -> Iterator[Any]:
    """The ray module, connected to the cluster that `on` names or to one that is started here.

    Raises:
        PotstillError: Ray is not installed, nothing answers, or Ray fails.
    """
    check_address(on)
    try:
        import grpc
        import ray
    except ImportError:
        raise PotstillError(
            f"--on {on} needs Ray, which is not installed", "pip install 'potstill[ray]'"
        ) from None
    address = os.environ.get("RAY_ADDRESS") if on == "ray" else on
    if address:
        _handshake(address, grpc)
    try:
        _init(ray, address, settings)
    except (Exception, SystemExit) as error:
        reason = str(error).strip().split("\n")[0]
        raise PotstillError(
            f"Ray failed on {address or 'this machine'}: {type(error).__name__}: {reason}",
            "the cluster needs the same versions of Python and Ray; if it requires a token, set "
            "RAY_AUTH_MODE=token; runtime_env is passed to Ray unchanged",
        ) from error
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints warnings of nodes to stdout
            yield ray
    finally:
        ray.shutdown()


def _init(ray: Any, address: str | None, settings: RaySettings) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if settings.runtime_env:
        options["runtime_env"] = settings.runtime_env
    if address:
        ray.init(address, **options)
        return
    cores = len(available_cores()) or os.cpu_count()
    sizes = {"num_cpus": cores, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    try:
        ray.init(**sizes, **options)
    except ValueError as error:  # a local cluster is running, and has sizes of its own
        if "existing cluster" not in str(error):
            raise
        ray.init(**options)


def _handshake(address: str, grpc: Any) -> None:
    """Raise if an address does not answer like a Ray server."""
    match = ADDRESS.match(address)
    if not match:
        return  # from the environment; Ray reads it
    port = "10001 with ray://, 6379 without, unless it was started with others"
    host, target = match["host"].strip("[]"), f"{match['host']}:{match['port']}"
    try:
        socket.create_connection((host, int(match["port"])), TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise PotstillError(
            f"nothing answers at {address}: {error}",
            f"check that the cluster is up and reachable from this machine; the port is {port}",
        ) from None
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # Ray has the certificates
    channel = grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)])  # as Ray does
    try:
        grpc.channel_ready_future(channel).result(timeout=TIMEOUT)
    except grpc.FutureTimeoutError:
        raise PotstillError(
            f"the server at {address} is not a Ray server", f"the port is {port}"
        ) from None
    finally:
        channel.close()
