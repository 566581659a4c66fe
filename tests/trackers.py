"""What trackers have written, read back with their own readers, as step -> numbers."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

Curves = dict[int, dict[str, float]]


def tensorboard(track: Path, cell: str) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(track / "tensorboard" / cell), size_guidance={"scalars": 0})
    read.Reload()
    steps: Curves = defaultdict(dict)
    for tag in read.Tags()["scalars"]:
        events = read.Scalars(tag)
        assert len({event.step for event in events}) == len(events), tag
        for event in events:
            steps[event.step][tag] = event.value
    assert "config" in read.Tags()["tensors"]
    return steps


def mlflow(track: Path, study: str, cell: str) -> Curves:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{track / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(study)
    runs = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{cell}'")
    (run,) = runs
    assert run.data.params["method"] == cell.split("/")[1]
    assert run.info.status == "FINISHED"
    steps: Curves = defaultdict(dict)
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        assert len({metric.step for metric in history}) == len(history), name
        for metric in history:
            steps[metric.step][name] = metric.value
    return steps


def trackio(track: Path, study: str, cell: str) -> Curves:
    steps: Curves = defaultdict(dict)
    (config, rows) = _trackio_runs(track / "trackio", study)[cell]
    assert config["method"] == cell.split("/")[1]
    for row in rows:
        kept = {k: v for k, v in row.items() if k not in ("step", "timestamp", "status")}
        assert row["step"] not in steps or all(k.startswith("result/") for k in kept), row
        steps[row["step"]] |= kept
    return steps


@cache
def _trackio_runs(folder: Path, study: str) -> dict[str, tuple[dict, list[dict]]]:
    """Settings and rows of every run, each of which is there once.

    In a process of its own: the place of Trackio's database is fixed when it is imported.
    """
    code = (
        "import json, sys, trackio\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "runs = [(r.name, r.config, SQLiteStorage.get_logs(sys.argv[1], run_id=r.id))\n"
        "        for r in trackio.Api().runs(sys.argv[1])]\n"
        "print(json.dumps(runs, default=str))\n"
    )
    environment = {"TRACKIO_DIR": str(folder), "PATH": "/usr/bin:/bin"}
    words = [sys.executable, "-c", code, study]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    runs = json.loads(done.stdout.splitlines()[-1])
    by_name = {name.rpartition("/")[0]: (config, rows) for name, config, rows in runs}
    assert len(by_name) == len(runs)  # a run that was killed is not there twice
    return by_name


def wandb(track: Path, study: str, cell: str) -> Curves:
    """The records of an offline run, by wandb's own protocol; their framing is LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    steps: Curves = defaultdict(dict)
    matches = 0
    for file in (track / "wandb" / "wandb").glob("offline-run-*/*.wandb"):
        records = [Record.FromString(data) for data in _frames(file.read_bytes())]
        (header,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
        if header.display_name != cell:
            continue
        matches += 1
        assert header.run_group == study and header.project == "potstill"
        assert any(u.key == "method" for u in header.config.update)
        for record in records:
            if record.WhichOneof("record_type") != "history":
                continue
            values = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            step = int(values["_step"])
            assert step not in steps
            steps[step] = {k: v for k, v in values.items() if not k.startswith("_")}
    assert matches == 1
    return steps


def _frames(data: bytes) -> list[bytes]:
    """Records of a LevelDB log with wandb's 7-byte head: blocks of 32 KiB, chunks in them."""
    assert data[:4] == b":W&B"
    records, at, part = [], 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            records.append(part)
            part = b""
    return records


def same(curves: Curves, rows: list[dict]) -> None:
    """Hold what a tracker has against metrics.jsonl: each step, each number, and no more."""
    from potstill.study.tracking.protocol import numbers

    wanted = {row["step"]: numbers(row) for row in rows}
    got = {
        step: {k: v for k, v in values.items() if not k.startswith("result/")}
        for step, values in curves.items()
    }
    assert got.keys() == wanted.keys()
    for step, values in wanted.items():
        assert got[step].keys() == values.keys(), step
        for name, value in values.items():
            assert math.isclose(got[step][name], value, rel_tol=1e-6, abs_tol=1e-7), (step, name)
