"""Run one engine in several processes that torchrun started.

The leader (rank 0) runs everything: the loop, evaluation, files and the progress display. Its
engine broadcasts each call to the followers, which hold their part of the weights and wait for the
next call; so code above the engine does not depend on the number of processes. `World` is the torch
engine's view of the processes: it splits rows and collects results.

The leader may be replaced (when a study's worker dies), so the processes form a new group for each
engine, with a store that torchrun keeps. Starting the processes is left to torchrun.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from potstill.engines.host import one_of_several
from potstill.engines.torch.batching import SPARE, by_kind, deal, micro_batches
from potstill.errors import NonFinite, PotstillError

Value = TypeVar("Value")
BROADCAST = (  # engine methods that need every process
    *("sample", "score", "rows", "inspect", "measure", "step"),
    *("size", "memory", "save", "load", "export"),
)
IDLE_LIMIT = timedelta(days=7)  # between two calls: the leader may evaluate, write or wait
_GROUPS_KEY, _SHUTDOWN_KEY = "potstill/met", "potstill/over"  # in torchrun's store


@dataclass(frozen=True)
class World:
    """This process's rank among the processes of the engine; a single process by default."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None

    @property
    def single(self) -> bool:
        """True if the engine has one process."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """True if this process reads and writes files."""
        return self.rank == 0

    def chunks(
        self,
        sizes: Sequence[int],
        limit: int,
        overhead: int = SPARE,
        *,
        together: bool = False,
        kinds: Sequence[Hashable] = (),
    ) -> Iterator[list[int]]:
        """Yield this process's micro-batches, as indices of rows.

        Args:
            sizes: number of tokens of each row, for the rows of all processes.
            limit: maximum number of padded tokens per micro-batch.
            overhead: cost of one more micro-batch, in tokens.
            together: append empty micro-batches until every process has the same number; needed if
                a forward pass runs in all processes at once.
            kinds: rows of different kinds do not share a micro-batch; default: one kind.
        """
        kinds = kinds or [None] * len(sizes)
        shares: list[list[list[int]]] = []
        for share in deal(sizes, self.size):
            groups = [[share[i] for i in group] for group in by_kind([kinds[i] for i in share])]
            shares.append(
                [
                    chunk
                    for group in groups
                    for chunk in micro_batches(group, [sizes[i] for i in group], limit, overhead)
                ]
            )
        yield from shares[self.rank]
        if together:
            yield from [[]] * (max(map(len, shares)) - len(shares[self.rank]))

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank."""
        if self.single:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def merge(self, rows: Mapping[int, Value]) -> list[Value]:
        """Combine the rows of all processes, given by index, into one list."""
        merged = {i: value for part in self.gather(dict(rows)) for i, value in part.items()}
        return [merged[i] for i in range(len(merged))]

    def broadcast(self, value: Value) -> Value:
        """Return the leader's value."""
        return self.gather(value)[0] if not self.single else value

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Run the block in one process per machine at a time, to hold one whole model in memory."""
        local_rank = 0 if self.single else int(os.environ["LOCAL_RANK"])
        local_size = 1 if self.single else int(os.environ["LOCAL_WORLD_SIZE"])
        try:
            for _ in range(local_rank):
                self.gather(None)
            yield
        finally:
            for _ in range(local_size - local_rank):
                self.gather(None)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process. Every process must call this."""
        if self.single:
            return flag
        tensor = torch.tensor(int(flag))
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return bool(tensor)


SINGLE = World()


def world_size() -> int:
    """Return the number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if one_of_several() else 1


def _store() -> TCPStore:
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise PotstillError(
            "several processes need torchrun's store to form a group",
            "start them with `torchrun --nproc-per-node N -m potstill ...`, without "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
        )
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, wait_for_workers=False)


def _join_group(store: TCPStore, number: int) -> World:
    """Join the group with this number; every process of torchrun has to join."""
    rank, size, kind = int(os.environ["RANK"]), world_size(), "cpu"
    if torch.cuda.is_available():
        kind = "cuda"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
        store=PrefixStore(f"potstill/{number}", store),
        rank=rank,
        world_size=size,
    )
    return World(rank, size, init_device_mesh(kind, (size,)))


class Leader:
    """The leader's engine: broadcasts each call to the followers and takes part in it."""

    def __init__(
        self, build: Callable[..., Any], arguments: tuple[Any, ...], settings: dict[str, Any]
    ) -> None:
        if dist.is_initialized():
            raise PotstillError(
                "several processes hold one engine at a time, and one is open", "close it first"
            )
        store = _store()
        if multiprocessing.parent_process() is None:
            dismiss_at_exit()
        self._in_sync = True  # whether the followers wait for the next call
        world = _join_group(store, store.add(_GROUPS_KEY, 1))
        self._calls = dist.new_group(backend="gloo", timeout=IDLE_LIMIT)
        try:
            self._broadcast("open", arguments, settings)
            self.engine = self._run(lambda: build(*arguments, world=world, **settings))
        except BaseException:
            self.close()
            raise
        for name in BROADCAST:
            setattr(self, name, self._broadcasting(name))
        self.engine.scorer = self.score

    def __getattr__(self, name: str) -> Any:
        if name == "engine":  # not set until it is open
            raise AttributeError(name)
        return getattr(self.engine, name)

    def _broadcasting(self, name: str) -> Callable[..., Any]:
        method = getattr(self.engine, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self._broadcast(name, arguments, options)
            return self._run(lambda: method(*arguments, **options))

        return call

    def _broadcast(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        call = [(name, arguments, options)]
        self._run(lambda: dist.broadcast_object_list(call, 0, group=self._calls))

    def _run(self, work: Callable[[], Value]) -> Value:
        """Run this process's part of a call.

        A `PotstillError` or `NonFinite` is raised in every process alike, so the followers stay in
        sync. After any other exception they do not.

        Raises:
            SystemExit: another process has died. The call has no result, so this process exits
                too.
        """
        try:
            return work()
        except (PotstillError, NonFinite):
            raise
        except BaseException as error:
            self._in_sync = False
            if _is_connection_error(error):
                raise SystemExit(f"another process of the engine has died: {error}") from error
            raise

    def close(self) -> None:
        """Release the followers for the next engine, and leave the group."""
        if not dist.is_initialized():
            return
        if self._in_sync:
            self._broadcast("close", (), {})
        if "engine" in vars(self):
            self.engine.close()
        dist.destroy_process_group()


def _is_connection_error(error: BaseException) -> bool:
    """Return whether an error comes from the connection to the other processes."""
    signs = ("gloo", "nccl", "connection closed", "connection reset")
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)


def dismiss_at_exit() -> None:
    """Let the followers exit when this process, the leader, has ended."""
    store = _store()

    def dismiss() -> None:
        with contextlib.suppress(Exception):  # without torchrun there are no followers either
            store.set(_SHUTDOWN_KEY, "")

    atexit.register(dismiss)


def follow(build: Callable[..., Any]) -> None:
    """Run a follower: take part in one engine after another until the leader exits."""
    store, joined = _store(), 0
    while not store.check([_SHUTDOWN_KEY]):
        newest = store.add(_GROUPS_KEY, 0)
        if newest == joined:
            time.sleep(0.2)
            continue
        joined = newest
        try:
            world = _join_group(store, joined)
            _serve(build, world, dist.new_group(backend="gloo", timeout=IDLE_LIMIT))
        except Exception:  # the leader has died, or a call failed in this process alone
            if not store.check([_SHUTDOWN_KEY]):
                print(f"process {os.environ['RANK']} of {world_size()}:", file=sys.stderr)
                traceback.print_exc()
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def _serve(build: Callable[..., Any], world: World, calls: dist.ProcessGroup) -> None:
    """Repeat the leader's calls until it closes the engine."""
    engine = None
    while True:
        received: list[Any] = [None]
        dist.broadcast_object_list(received, 0, group=calls)
        name, arguments, options = received[0]
        if name == "close":
            return
        with contextlib.suppress(PotstillError, NonFinite):  # the leader raises it too
            if name == "open":
                engine = build(*arguments, world=world, **options)
            else:
                getattr(engine, name)(*arguments, **options)


def distributed(build: Callable[..., Any]) -> Callable[..., Any]:
    """Return an engine's constructor for any number of processes.

    In a follower the constructor runs until the leader exits, and then exits too.
    """

    def construct(*arguments: Any, **settings: Any) -> Any:
        if world_size() == 1:
            return build(*arguments, **settings)
        if os.environ["RANK"] != "0":
            follow(build)
            raise SystemExit(0)
        return Leader(build, arguments, settings)

    construct.__signature__ = inspect.signature(build)  # type: ignore[attr-defined]
    return construct
