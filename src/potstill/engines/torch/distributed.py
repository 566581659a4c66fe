"""Several processes that are one engine: what `torchrun` starts, led by the first of them.

The first process runs everything: loop, grading, files, the live view. Its engine passes each
call on to the others, which hold nothing but their part of the weights and wait for the next one;
so no code above the engine knows that there are several. `Team` is what the torch engine itself
asks: which rows are mine, and what did the others find.

The first process may be replaced (a study's worker that dies), so the processes meet anew for
each engine, in a store that torchrun keeps. It leaves out what starts the processes: torchrun.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from potstill.engines.host import one_of_several
from potstill.engines.torch.batching import SPARE, deal, micro_batches
from potstill.errors import NonFinite, PotstillError

Found = TypeVar("Found")
PASSED_ON = (
    *("sample", "score", "rows", "inspect", "measure", "step"),
    *("size", "memory", "save", "load", "export"),
)
LONGEST = timedelta(days=7)  # between two calls: the first process may grade, write, wait
_MET, _OVER = "potstill/met", "potstill/over"


@dataclass(frozen=True)
class Team:
    """This process among those that are one engine; alone by default."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that reads and writes files."""
        return self.rank == 0

    def chunks(
        self, sizes: Sequence[int], limit: int, overhead: int = SPARE, *, together: bool = False
    ) -> Iterator[list[int]]:
        """This process's micro-batches, as indices of rows.

        Args:
            sizes: tokens of each row, of all processes' rows.
            limit: most padded tokens of a micro-batch.
            overhead: what one more micro-batch costs, in tokens.
            together: as many as any other process has, the last ones empty: where a forward
                pass needs every process.
        """
        shares = [
            list(micro_batches(share, [sizes[i] for i in share], limit, overhead))
            for share in deal(sizes, self.size)
        ]
        yield from shares[self.rank]
        if together:
            yield from [[]] * (max(map(len, shares)) - len(shares[self.rank]))

    def all(self, mine: Found) -> list[Found]:
        """What every process has, in their order."""
        if self.alone:
            return [mine]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine)
        return found

    def merge(self, mine: Mapping[int, Found]) -> list[Found]:
        """Rows that each process has by index, as one list."""
        found = {i: value for part in self.all(dict(mine)) for i, value in part.items()}
        return [found[i] for i in range(len(found))]

    def told(self, mine: Found) -> Found:
        """What the first process has."""
        return self.all(mine)[0] if not self.alone else mine

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """One process of a machine after the other: a whole model fits into memory once."""
        place = 0 if self.alone else int(os.environ["LOCAL_RANK"])
        places = 1 if self.alone else int(os.environ["LOCAL_WORLD_SIZE"])
        try:
            for _ in range(place):
                self.all(None)
            yield
        finally:
            for _ in range(places - place):
                self.all(None)

    def anyone(self, going: bool) -> bool:
        """Whether any process still goes on. All of them have to ask."""
        if self.alone:
            return going
        flag = torch.tensor(int(going))
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)


ALONE = Team()


def several() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if one_of_several() else 1


def _store() -> TCPStore:
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise PotstillError(
            "the processes need torchrun's own store to meet in",
            "start them by `torchrun --nproc-per-node N -m potstill ...`, without "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
        )
    place, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(place, port, is_master=False, wait_for_workers=False)


def _meet(store: TCPStore, meeting: int) -> Team:
    """Form the group of the given meeting; everyone of torchrun's has to come."""
    rank, size, kind = int(os.environ["RANK"]), several(), "cpu"
    if torch.cuda.is_available():
        kind = "cuda"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
        store=PrefixStore(f"potstill/{meeting}", store),
        rank=rank,
        world_size=size,
    )
    return Team(rank, size, init_device_mesh(kind, (size,)))


class Led:
    """The first process's engine: passes each call on to the others and takes part itself."""

    def __init__(
        self, build: Callable[..., Any], arguments: tuple[Any, ...], settings: dict[str, Any]
    ) -> None:
        if dist.is_initialized():
            raise PotstillError(
                "these processes are one engine, and it is open already", "close it first"
            )
        store = _store()
        if multiprocessing.parent_process() is None:
            dismiss_at_exit()
        self._whole = True  # whether the others wait for the next call
        team = _meet(store, store.add(_MET, 1))
        self._orders = dist.new_group(backend="gloo", timeout=LONGEST)
        try:
            self._tell("open", arguments, settings)
            self.engine = self._agreed(lambda: build(*arguments, team=team, **settings))
        except BaseException:
            self.close()
            raise
        for name in PASSED_ON:
            setattr(self, name, self._passing(name))

    def __getattr__(self, name: str) -> Any:
        if name == "engine":  # not there before it is open
            raise AttributeError(name)
        return getattr(self.engine, name)

    def _passing(self, name: str) -> Callable[..., Any]:
        work = getattr(self.engine, name)

        def passed_on(*arguments: Any, **options: Any) -> Any:
            self._tell(name, arguments, options)
            return self._agreed(lambda: work(*arguments, **options))

        return passed_on

    def _tell(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        order = [(name, arguments, options)]
        self._agreed(lambda: dist.broadcast_object_list(order, 0, group=self._orders))

    def _agreed(self, work: Callable[[], Any]) -> Any:
        """What raises in every process alike leaves them whole; anything else parts them.

        Raises:
            SystemExit: another process is gone. That is no result of what was asked for, so this
                process ends too, as if it had been the one.
        """
        try:
            return work()
        except (PotstillError, NonFinite):
            raise
        except BaseException as error:
            self._whole = False
            if _of_the_line(error):
                raise SystemExit(f"a process of the engine is gone: {error}") from error
            raise

    def close(self) -> None:
        """Let the others go to the next meeting, and part."""
        if not dist.is_initialized():
            return
        if self._whole:
            self._tell("close", (), {})
        if hasattr(self, "engine"):
            self.engine.close()
        dist.destroy_process_group()


def _of_the_line(error: BaseException) -> bool:
    """Whether an error is of the connection to the other processes."""
    lines = ("gloo", "nccl", "connection closed", "connection reset")
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in lines)


def dismiss_at_exit() -> None:
    """Send the others home when this process, the first, has ended."""
    store = _store()

    def dismiss() -> None:
        with contextlib.suppress(Exception):  # torchrun may be gone: so are the others then
            store.set(_OVER, "")

    atexit.register(dismiss)


def follow(build: Callable[..., Any]) -> None:
    """What the processes other than the first do: serve one engine after the other, until over."""
    store, met = _store(), 0
    while not store.check([_OVER]):
        newest = store.add(_MET, 0)
        if newest == met:
            time.sleep(0.2)
            continue
        met = newest
        try:
            team = _meet(store, met)
            _serve(build, team, dist.new_group(backend="gloo", timeout=LONGEST))
        except Exception:  # the first process is gone, or finds this one gone
            if not store.check([_OVER]):
                print(f"process {os.environ['RANK']} of {several()}:", file=sys.stderr)
                traceback.print_exc()
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def _serve(build: Callable[..., Any], team: Team, orders: Any) -> None:
    """Do what the first process does, call by call."""
    engine = None
    while True:
        told: list[Any] = [None]
        dist.broadcast_object_list(told, 0, group=orders)
        name, arguments, options = told[0]
        if name == "close":
            return
        with contextlib.suppress(PotstillError, NonFinite):  # the first process has it too
            if name == "open":
                engine = build(*arguments, team=team, **options)
            else:
                getattr(engine, name)(*arguments, **options)


def opened(build: Callable[..., Any]) -> Callable[..., Any]:
    """An engine's constructor for any number of processes.

    In a process other than the first it does not return before all is over, and then ends it.
    """

    def construct(*arguments: Any, **settings: Any) -> Any:
        if several() == 1:
            return build(*arguments, **settings)
        if os.environ["RANK"] != "0":
            follow(build)
            raise SystemExit(0)
        return Led(build, arguments, settings)

    construct.__signature__ = inspect.signature(build)  # type: ignore[attr-defined]
    return construct
