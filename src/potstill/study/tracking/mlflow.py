"""MLflow: one experiment per study, one run per run.

Runs go to the server in `MLFLOW_TRACKING_URI`, else to a database in the study's folder.
`mlflow-skinny`, the client without server and models, is enough. After a restart a run is found by
its tag, and continued after the last step that MLflow has, in batches of complete steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds; MLflow's default is 120
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from potstill.settings import flatten
from potstill.study.tracking.protocol import Row, RunInfo, summary

TAG = "potstill.id"
CLOCK = "tokens"  # a metric of every row, so its history has every step
BATCH = 1000  # most metrics of a batch
LONGEST = 500  # characters of a parameter that every store accepts


class MlflowRun:
    """One run of an MLflow experiment."""

    def __init__(self, info: RunInfo) -> None:
        info.folder.mkdir(parents=True, exist_ok=True)
        local = f"sqlite:///{info.folder.resolve() / 'mlflow.db'}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or local)
        experiment = self._experiment(info)
        runs = self._client.search_runs([experiment], f"tags.`{TAG}` = '{info.id}'")
        self.last, self._step = -1, 0
        if runs:
            self._run = runs[0].info.run_id
            history = self._client.get_metric_history(self._run, CLOCK)
            self.last = max((metric.step for metric in history), default=-1)
            self._client.update_run(self._run, "RUNNING")
            return
        run = self._client.create_run(experiment, run_name=info.run, tags={TAG: info.id})
        self._run = run.info.run_id
        params = [Param(key, str(v)[:LONGEST]) for key, v in flatten(info.config).items()]
        self._client.log_batch(self._run, params=params)

    def _experiment(self, info: RunInfo) -> str:
        experiment = self._client.get_experiment_by_name(info.study)
        if experiment is None:
            artifacts = None
            if not os.environ.get("MLFLOW_TRACKING_URI"):
                artifacts = (info.folder / "artifacts").resolve().as_uri()
            try:
                return str(self._client.create_experiment(info.study, artifact_location=artifacts))
            except MlflowException:  # another study has just created it
                experiment = self._client.get_experiment_by_name(info.study)
                if experiment is None:
                    raise
        return str(experiment.experiment_id)

    def log(self, rows: Sequence[Row]) -> None:
        now = int(time.time() * 1000)
        batch: list[Metric] = []
        for self._step, numbers in rows:
            if len(batch) + len(numbers) > BATCH:
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


open_run = MlflowRun
