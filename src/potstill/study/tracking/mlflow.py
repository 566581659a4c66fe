"""MLflow: an experiment a study, a run a cell; on the server of `MLFLOW_TRACKING_URI`, else in a
database in the study's folder.

`mlflow-skinny` is enough, the client without server and models. A run is found again by its tag,
and its last step is asked for: what it lacks is sent, in batches of whole rows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds; its own is 120
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from potstill.study.tracking import Row, Sheet, flat, summary

TAG = "potstill.id"
CLOCK = "tokens"  # in every row, so its history says which steps are there
MOST = 1000  # metrics of a batch
LONGEST = 500  # characters of a parameter that every store takes


class Run:
    """One run in an MLflow experiment."""

    def __init__(self, sheet: Sheet) -> None:
        sheet.folder.mkdir(parents=True, exist_ok=True)
        local = f"sqlite:///{sheet.folder.resolve() / 'mlflow.db'}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or local)
        experiment = self._experiment(sheet)
        found = self._client.search_runs([experiment], f"tags.`{TAG}` = '{sheet.id}'")
        self.last, self._step = -1, 0
        if found:
            self._run = found[0].info.run_id
            history = self._client.get_metric_history(self._run, CLOCK)
            self.last = max((metric.step for metric in history), default=-1)
            self._client.update_run(self._run, "RUNNING")
            return
        begun = self._client.create_run(experiment, run_name=sheet.cell, tags={TAG: sheet.id})
        self._run = begun.info.run_id
        params = [Param(k, str(v)[:LONGEST]) for k, v in flat(sheet.config).items()]
        self._client.log_batch(self._run, params=params)

    def _experiment(self, sheet: Sheet) -> str:
        known = self._client.get_experiment_by_name(sheet.study)
        if known is None:
            place = None
            if not os.environ.get("MLFLOW_TRACKING_URI"):
                place = (sheet.folder / "artifacts").resolve().as_uri()
            try:
                return str(self._client.create_experiment(sheet.study, artifact_location=place))
            except MlflowException:  # another study has made it just now
                known = self._client.get_experiment_by_name(sheet.study)
                if known is None:
                    raise
        return str(known.experiment_id)

    def log(self, rows: Sequence[Row]) -> None:
        now = int(time.time() * 1000)
        batch: list[Metric] = []
        for self._step, numbers in rows:
            if len(batch) + len(numbers) > MOST:
                self._client.log_batch(self._run, metrics=batch)
                batch = []
            batch += [Metric(name, value, now, self._step) for name, value in numbers.items()]
        self._client.log_batch(self._run, metrics=batch)

    def close(self, result: Mapping[str, Any]) -> None:
        if not result:
            return
        self.log([(self._step, summary(result))])
        if result.get("cause"):
            self._client.set_tag(self._run, "cause", str(result["cause"])[:LONGEST])
        failed = result.get("status") == "failed"
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


open_run = Run
