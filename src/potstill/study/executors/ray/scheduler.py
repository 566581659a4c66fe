"""A study's cells as tasks of a Ray cluster: handing them out, and what becomes of them.

Every cell that is ready is a task of its own; Ray finds it a node. Deaths are counted here and
not left to Ray's retries, as a cell that is taken again goes on from its resume point and one that
is given up is a result. Who may take a cell is decided where its folder is: by a lock in a shared
folder, by a mark behind a URL (see `loan`).
"""

from __future__ import annotations

import contextlib
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from potstill.errors import PotstillError, StorageError
from potstill.study.executors.base import LEAVING, Results, afford, give_up, ready, unfinished, work
from potstill.study.executors.ray.lease import ABANDONED
from potstill.study.executors.ray.worker import Job, Outcome, attempt
from potstill.study.remote import MARK, RESULT, STOP, Mirror, Patience
from potstill.study.schema import Study
from potstill.study.storage import Cell, StudyFolder

LOOK = 2.0  # seconds between looks at what is behind a URL, and at a cell that another one holds
SEEN = 60.0  # seconds for a result that a node has written to be seen here
STARVED = 300.0  # seconds for a node that is large enough to come back


class Tasks:
    """The tasks of one study.

    Args:
        ray: Ray, connected.
        study: its settings; `study.ray` says what a cell asks for.
        folder: the study's folder here: one that all nodes share, or the mirror's.
        cells: what is to be filled in.
        limit: most tasks at a time; 0: as many as are ready.
        mirror: where the study's folder is behind a URL.
    """

    def __init__(
        self,
        ray: Any,
        study: Study,
        folder: StudyFolder,
        cells: Sequence[Cell],
        limit: int = 0,
        mirror: Mirror | None = None,
    ) -> None:
        self.study, self.folder, self.cells = study, folder, list(cells)
        self.deaths: Counter[Cell] = Counter()
        self._ray, self._limit, self._mirror = ray, limit, mirror
        self._task = ray.remote(attempt)
        self._running: dict[Any, Cell] = {}
        self._driver = uuid.uuid4().hex
        self._later: dict[Cell, float] = {}  # not before this time
        self._ended: dict[Cell, tuple[float, str]] = {}  # when a node said so, and which
        self._marks: dict[Cell, tuple[dict[str, Any], float]] = {}  # and since when it is so
        self._looked = self._fed = time.monotonic()
        self._patience = Patience()

    def run(self, tick: Callable[[], None], every: float = 0.5) -> Results:
        """Fill in the grid, see `where.work`."""
        if self._mirror:
            self._mirror.open()
            self._mirror.remote.remove(STOP)
        return work(self, self.study, self.folder, self.cells, tick, every)

    def tend(self, missing: Sequence[Cell]) -> None:
        """Take in what has ended, count the dead, and hand out what is ready."""
        self._take_in(wait=False)
        now = time.monotonic()
        if now - self._looked >= LOOK:
            self._looked = now
            self._feed(now)
            if self._mirror:
                with self._patience:
                    self._mirror.pull()
                afford(self, self.study, self.folder, self.cells)
        at_work = set(self._running.values())
        for cell in ready(self.folder, missing):
            if self._limit and len(self._running) >= self._limit:
                return
            if cell not in at_work and self._due(cell, now):
                self._hand_out(cell)

    def settle(self) -> None:
        """Wait until every task has stopped by itself, and bring home what they leave."""
        if self._mirror:
            over = self.folder.ledger(self.study).over()
            self._mirror.remote.write(STOP, over.encode())
        self._take_in(wait=True)
        if self._mirror:
            self._mirror.pull()

    def stop(self) -> None:
        """End every task; resume points stay, and so do locks and marks for no longer. Where all is
        done each ends by itself, its last cell in order."""
        tasks = list(self._running)
        with contextlib.suppress(self._ray.exceptions.RayError):  # it may be why this ends
            if tasks and not unfinished(self.folder, self.cells):
                self._ray.wait(tasks, num_returns=len(tasks), timeout=LEAVING)
            for task in tasks:
                self._ray.cancel(task, force=True)
            if tasks:
                self._ray.wait(tasks, num_returns=len(tasks), timeout=30)
        if self._mirror:
            with contextlib.suppress(StorageError):  # it may be why this ends
                self._release(self._mirror)
        self._running.clear()

    def _release(self, mirror: Mirror) -> None:
        mirror.pull()
        for cell in self._running.values():
            if mirror.mark(str(cell)).get("driver") == self._driver:
                mirror.remote.remove(f"cells/{cell}/{MARK}")

    def _hand_out(self, cell: Cell) -> None:
        place = self._mirror.remote.url if self._mirror else str(self.folder.path.resolve())
        gone = self._marks.get(cell, ({}, 0.0))[0].get("attempt", "")
        table = self.study.to_toml()
        job = Job(table, cell, place, self._mirror is not None, self._driver, gone)
        task = self._task.options(**needs(self.study), max_retries=0, name=str(cell))
        self._running[task.remote(job)] = cell

    def _due(self, cell: Cell, now: float) -> bool:
        """Whether a cell may be tried now: nobody else is known to work on it."""
        if cell in self._ended:
            since, host = self._ended[cell]
            if now - since > SEEN:
                path = self.folder.path
                raise PotstillError(
                    f'{host} says that {cell} has ended, and nothing of it is in "{path}"',
                    "give an --out that every node shares with this one, or a URL such as s3://...",
                )
            return False
        if now < self._later.get(cell, now):
            return False
        mark = self._mirror.mark(str(cell)) if self._mirror else {}
        if not mark or mark["driver"] == self._driver:
            self._marks.pop(cell, None)
            return True
        if self._marks.get(cell, ({}, 0.0))[0] != mark:
            self._marks[cell] = mark, now
        return now - self._marks[cell][1] > ABANDONED

    def _take_in(self, wait: bool) -> None:
        """Note how those tasks have ended that did; all of them, where it waits."""
        if not self._running:
            return
        pending, timeout = list(self._running), None if wait else 0
        ended, _ = self._ray.wait(pending, num_returns=len(pending), timeout=timeout)
        outcomes = [(self._running.pop(task), told(self._ray, task)) for task in ended]
        for cell, outcome in outcomes:
            self._note(cell, outcome)
        if not wait and any(isinstance(o, Outcome) and o.kind == "spent" for _, o in outcomes):
            afford(self, self.study, self.folder, self.cells)

    def _note(self, cell: Cell, outcome: Outcome | str) -> None:
        if isinstance(outcome, str):
            self._bury(cell, outcome)
        elif outcome.kind == "done":
            self._ended[cell] = time.monotonic(), outcome.host
        elif outcome.kind == "storage":
            raise StorageError(outcome.text, outcome.hint)
        elif outcome.kind == "wrong":
            raise PotstillError(outcome.text, outcome.hint)
        else:  # another one holds it, or the budget is spent
            self._later[cell] = time.monotonic() + LOOK

    def _bury(self, cell: Cell, cause: str) -> None:
        """Count a death; a cell that has cost more workers or nodes than it may has failed."""
        self.deaths[cell] += 1
        died, may = self.deaths[cell], self.study.ray.retries
        if died <= may:
            print(f"warning: {cell}: {cause}; retry {died} of {may}", file=sys.stderr)
            return
        if self._mirror:
            self._mirror.pull()
        if self.folder.cell(cell).result is not None:
            return  # it died after its last word
        times = "once" if died == 1 else f"{died} times"
        give_up(self.folder, cell, f"its worker or node died {times} ({cause})")
        if self._mirror:
            self._mirror.send(f"cells/{cell}/{RESULT}")
            for name in ("checkpoints", MARK):
                self._mirror.remote.remove(f"cells/{cell}/{name}")

    def _feed(self, now: float) -> None:
        """Raise where no node has been large enough for a cell for a while."""
        if not lacking(self._ray, self.study):
            self._fed = now
        elif now - self._fed > STARVED:
            require(self._ray, self.study)


def needs(study: Study) -> dict[str, float]:
    """What a cell asks of a node, as Ray's options; memory in bytes."""
    asked, threads = study.ray, getattr(study.engine, "threads", 1)
    found = {"num_cpus": asked.cpus or max(1, threads), "num_gpus": asked.gpus}
    return {**found, "memory": int(asked.memory * 1e9)} if asked.memory else found


def lacking(ray: Any, study: Study) -> str:
    """What the largest node of each kind has, in words, where a cell fits on none; else empty."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    asked = {names[key]: value for key, value in needs(study).items() if value}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(k, 0) >= value for k, value in asked.items()) for node in nodes):
        return ""
    return ", ".join(dict.fromkeys(_words(node) for node in nodes)) or "no node at all"


def require(ray: Any, study: Study) -> None:
    """Refuse a study whose cells fit on no node: they would wait for ever."""
    if there := lacking(ray, study):
        asked = needs(study)
        want = {"CPU": asked["num_cpus"], "GPU": asked["num_gpus"]}
        raise PotstillError(
            f"a cell asks for {_words({**want, 'memory': asked.get('memory', 0)})}, and no node of "
            f"the cluster has that; its nodes: {there}",
            "lower cpus, gpus or memory in [ray], or add a larger node",
        )


def _words(have: Mapping[str, float]) -> str:
    """Resources as a person says them."""
    cpus, gpus, memory = (have.get(name, 0) for name in ("CPU", "GPU", "memory"))
    gigabytes = f" and {memory / 1e9:.3g} GB" if memory else ""
    return f"{cpus:g} cores, {gpus:g} GPUs{gigabytes}"


def told(ray: Any, task: Any) -> Outcome | str:
    """How a task ended, or in words what it died of.

    Raises:
        PotstillError: it could not begin, as the node lacks potstill or refuses the runtime_env; or
            Ray is gone on this side.
    """
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise explained(error) from None
    except ray.exceptions.RuntimeEnvSetupError as error:
        said = str(error).strip().split("\n")[0]
        raise PotstillError(f"Ray cannot make the runtime_env: {said}", "see [ray]") from None
    except ray.exceptions.LocalRayletDiedError:
        raise PotstillError(
            "the Ray node to which this process is connected is gone",
            "run the same command again when the cluster is up: what is begun goes on",
        ) from None
    except ray.exceptions.RayError as error:
        kinds = {"WorkerCrashedError": "its worker process died", "NodeDiedError": "its node died"}
        kinds["OutOfMemoryError"] = "the node ran out of memory"
        return kinds.get(type(error).__name__, type(error).__name__)


def explained(error: Any) -> Exception:
    """What an exception on a node was there."""
    if "No module named 'potstill" in str(error):
        return PotstillError(
            "a node of the cluster has no potstill",
            "install the same version on every node, or let [ray] runtime_env do it with pip",
        )
    cause = error.cause
    return cause if isinstance(cause, Exception) else error
