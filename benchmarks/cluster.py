"""Whether a study on a Ray cluster gives what it gives here, though workers and nodes are killed.

    python -m benchmarks.cluster
    python -m benchmarks.cluster --kills 6 --steps 40

One study is run by processes of this machine and then three times on a real Ray cluster of two
nodes on this machine: in a shared folder and behind a URL, with worker processes killed by signal 9
in mid-run, and behind a URL with a node killed, all its processes at once. It prints how many cells
there are, what was killed, how often a cell was taken again, and of how many cells everything that
does not depend on a clock is the same, byte for byte.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from potstill.study.executors.local import LocalExecutor
from potstill.study.executors.ray import RayExecutor, open_cluster
from potstill.study.loading import read_study
from potstill.study.remote import Mirror
from potstill.study.schema import Study
from potstill.study.storage import REFERENCES, RunId, StudyFolder, runs_of

TIMELESS = ("status", "steps", "accuracy", "flexible", "outcomes", "tokens", "findings", "ended")
STUDY: dict[str, Any] = {
    "name": "cluster",
    "methods": ["replay_buffer", "hybrid"],
    "seeds": [0, 1],
    "train": {"batch_size": 6, "checkpoint_every": 3},
    "eval": {"problems": 40, "every": 10, "probe_every": 5},
}


def kept(folder: Path, cells: list[RunId]) -> dict[RunId, tuple[dict[str, Any], bytes, bytes]]:
    """Of each cell that has ended, what must not depend on where it ran: its result without
    clocks and machine, its metrics and its texts."""
    found = {}
    for cell, record in StudyFolder(folder).results(cells).items():
        place = folder / "cells" / str(cell)
        files = ((place / name) for name in ("metrics.jsonl", "examples.jsonl"))
        metrics, texts = (file.read_bytes() if file.exists() else b"" for file in files)
        found[cell] = {key: record.get(key) for key in TIMELESS}, metrics, texts
    return found


@dataclass
class Killer:
    """Kills whoever works on a run that has come some way, each run once.

    Args:
        folder: where marks and steps are read.
        cells: of the study.
        most: kills.
        after: steps that a run must have made: past a resume point, so that it counts.
        nodes: kill the node, its raylet and whatever that has started, instead of the worker.
    """

    folder: StudyFolder
    cells: list[RunId]
    most: int
    after: int
    nodes: bool = False
    killed: list[RunId] = field(default_factory=list)

    def __call__(self) -> None:
        for cell in self.cells:
            place = self.folder.cell(cell)
            mark = place.running
            fresh = cell not in self.killed and cell.method not in REFERENCES
            if not fresh or not mark or place.result or place.steps < self.after:
                continue
            if len(self.killed) < self.most:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._kill(psutil.Process(mark["pid"]))
                    self.killed.append(cell)

    def _kill(self, worker: psutil.Process) -> None:
        raylet = worker.parent()
        for process in [raylet, *raylet.children(recursive=True)] if self.nodes else [worker]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@contextlib.contextmanager
def two_nodes() -> Iterator[str]:
    """A Ray cluster on this machine: a head that runs no cells and two nodes of one core each;
    yields its address."""
    from ray.cluster_utils import Cluster as Nodes

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    store = 100_000_000  # bytes; the smallest that Ray takes is a little less
    head = {"num_cpus": 0, "object_store_memory": store, "include_dashboard": False}
    nodes = Nodes(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1, object_store_memory=store)
        nodes.wait_for_nodes()
        yield str(nodes.address)
    finally:
        nodes.shutdown()


def spread(
    cluster: RayExecutor, study: Study, folder: StudyFolder, tick: Callable[[], None]
) -> tuple[int, int]:
    """Run a study there; returns how often a worker or node died, and how many cells failed."""
    folder.open(study)
    tasks = cluster.scheduler(study, folder, runs_of(study))
    results = tasks.run(tick, every=0.1)
    failed = sum(record["status"] == "failed" for record in results.values())
    return sum(tasks.crashes.values()), failed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/cluster"))
    parser.add_argument("--kills", type=int, default=4, help="worker processes killed in a study")
    parser.add_argument("--steps", type=int, default=20, help="steps of a run")
    args = parser.parse_args()
    if args.out.exists():
        raise SystemExit(f"{args.out} is there already: remove it, or use another --out")
    study = read_study({**STUDY, "train": {**STUDY["train"], "steps": args.steps}})
    cells = runs_of(study)
    here = StudyFolder(args.out / "here")
    here.open(study)
    LocalExecutor().run(study, here, cells, lambda: None)
    whole = kept(here.path, cells)
    print("| on two nodes | cells | killed | retries | failed | same results | metrics | texts |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    for name, url, nodes, kills in (
        ("a shared folder, workers killed", False, False, args.kills),
        ("a URL, workers killed", True, False, args.kills),
        ("a URL, a node killed", True, True, 1),
    ):
        place = args.out / name.replace(", ", "-").replace(" ", "-")
        mirror = Mirror(place.resolve().as_uri()) if url else None
        folder = StudyFolder(mirror.path if mirror else place)
        killer = Killer(folder, cells, kills, STUDY["train"]["checkpoint_every"] + 1, nodes)
        with two_nodes() as address, open_cluster(address, study, mirror=mirror) as cluster:
            deaths, failed = spread(cluster, study, folder, killer)
        found = kept(place, cells)
        same = [sum(found[c][i] == whole[c][i] for c in found) for i in range(3)]
        print(
            f"| {name} | {len(cells)} | {len(killer.killed)} | {deaths} | {failed} | "
            + " | ".join(f"{n} of {len(cells)}" for n in same)
            + " |",
            flush=True,
        )
        if mirror:
            shutil.rmtree(mirror.path)


if __name__ == "__main__":
    main()
