"""The Ray executor: runs are tasks of a Ray cluster, on this machine or an existing one.

`connect` opens the connection, `scheduler` submits runs as tasks, `worker` executes them on a
node, `resources` compares requests with nodes, and `lease` decides who executes a run whose folder
is behind a URL. Ray is imported only when a cluster is opened. Clusters are neither created nor
scaled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

from potstill.diagnostics.preflight import Check
from potstill.errors import PotstillError
from potstill.study.executors.base import PairWatch, Results, unwatched_pair
from potstill.study.executors.ray.connect import check_address, connection
from potstill.study.executors.ray.resources import requested, require_node
from potstill.study.executors.ray.scheduler import RayScheduler, node_error
from potstill.study.executors.ray.worker import preflight
from potstill.study.remote import Mirror
from potstill.study.schema import Study
from potstill.study.storage import RunId, StudyFolder

__all__ = ["RayExecutor", "check_address", "open_cluster"]


class RayExecutor:
    """Runs studies on the cluster to which this process is connected.

    Args:
        ray: the ray module.
        limit: most runs at a time; 0: as many as the cluster has resources for.
        mirror: the local copy, if the study's folder is behind a URL.
    """

    def __init__(self, ray: Any, limit: int = 0, mirror: Mirror | None = None) -> None:
        self.ray, self._limit, self._mirror = ray, limit, mirror

    def preflight(
        self, study: Study, watch: PairWatch = unwatched_pair, *, repeat: bool = False
    ) -> dict[str, list[Check]]:
        """Run the checks of every pair, each on a node with the resources of a run.

        Their progress is reported when all have ended.
        """
        task = self.ray.remote(preflight).options(**requested(study), max_retries=1)
        table, potstill = study.to_toml(), version("potstill")
        jobs = [task.remote(table, pair, potstill, repeat) for pair in study.models]
        try:
            results = dict(zip(study.models, self.ray.get(jobs), strict=True))
        except self.ray.exceptions.RayTaskError as error:
            raise node_error(error) from None
        except self.ray.exceptions.RayError as error:
            raise PotstillError(
                f"pre-flight was interrupted on its node: {type(error).__name__}",
                "memory may have run out: raise memory in [ray], or run with --no-preflight",
            ) from None

        for pair, (_, made) in results.items():
            for progress in made:
                watch(pair, progress)
        return {pair: checks for pair, (checks, _) in results.items()}

    def scheduler(self, study: Study, folder: StudyFolder, keys: Sequence[RunId]) -> RayScheduler:
        """The scheduler of one study."""
        return RayScheduler(self.ray, study, folder, keys, self._limit, self._mirror)

    def run(
        self, study: Study, folder: StudyFolder, keys: Sequence[RunId], on_poll: Callable[[], None]
    ) -> Results:
        return self.scheduler(study, folder, keys).run(on_poll)


@contextlib.contextmanager
def open_cluster(
    address: str, study: Study, limit: int = 0, mirror: Mirror | None = None
) -> Iterator[RayExecutor]:
    """Connect to a cluster, or start a local one, for the duration of the block.

    Args:
        address: the value of --on.
        study: the settings; each run needs the resources of its [ray] table.
        limit, mirror: as for `RayExecutor`.

    Raises:
        PotstillError: it is unreachable, or none of its nodes has the resources of a run.
    """
    with connection(address, study.ray) as ray:
        require_node(ray, study)
        yield RayExecutor(ray, limit, mirror)
