"""A Ray cluster as a place where a study's cells run: on this machine, or on one that exists.

`address` connects, `crew` hands out cells as tasks, `node` is what runs there, `loan` keeps a cell
whose folder is behind a URL. Ray is imported when a cluster is opened. Clusters are neither made
nor scaled here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

from potstill.diagnostics.preflight import Check
from potstill.errors import PotstillError
from potstill.study.executors.base import Results
from potstill.study.executors.ray import worker as node
from potstill.study.executors.ray.connect import check_place, connected
from potstill.study.executors.ray.scheduler import Tasks, explained, needs, require
from potstill.study.remote import Mirror
from potstill.study.schema import Study
from potstill.study.storage import Cell, StudyFolder

__all__ = ["Cluster", "check_place", "opened"]


class Cluster:
    """A cluster to which this process is connected.

    Args:
        ray: Ray itself.
        limit: most cells at a time; 0: as many as it has room for.
        mirror: where the study's folder is behind a URL.
    """

    def __init__(self, ray: Any, limit: int = 0, mirror: Mirror | None = None) -> None:
        self.ray, self._limit, self._mirror = ray, limit, mirror

    def preflight(self, study: Study) -> dict[str, list[Check]]:
        """Pre-flight of every pair, each on a node with the resources of a cell."""
        task = self.ray.remote(node.preflight).options(**needs(study), max_retries=1)
        table, mine = study.to_toml(), version("potstill")
        jobs = [task.remote(table, pair, mine) for pair in study.models]
        try:
            return dict(zip(study.models, self.ray.get(jobs), strict=True))
        except self.ray.exceptions.RayTaskError as error:
            raise explained(error) from None
        except self.ray.exceptions.RayError as error:
            raise PotstillError(
                f"pre-flight was cut off on its node: {type(error).__name__}",
                "memory may have run out: raise memory in [ray], or run with --no-preflight",
            ) from None

    def tasks(self, study: Study, folder: StudyFolder, cells: Sequence[Cell]) -> Tasks:
        """The crew that fills in a grid."""
        return Tasks(self.ray, study, folder, cells, self._limit, self._mirror)

    def run(
        self, study: Study, folder: StudyFolder, cells: Sequence[Cell], tick: Callable[[], None]
    ) -> Results:
        return self.tasks(study, folder, cells).run(tick)


@contextlib.contextmanager
def opened(
    on: str, study: Study, limit: int = 0, mirror: Mirror | None = None
) -> Iterator[Cluster]:
    """Connect to a cluster, or start one here, and leave it again.

    Raises:
        PotstillError: it cannot be reached, or none of its nodes is large enough for a cell.
    """
    with connected(on, study.ray) as ray:
        require(ray, study)
        yield Cluster(ray, limit, mirror)
