"""Weights & Biases: one run per run, grouped by study.

With `WANDB_MODE=offline` the runs stay in the study's folder. Online, a run is continued after the
last step that the server has. Offline files cannot be continued, so those of an interrupted run
are written again from its first row. System metrics, code and console output are not sent.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import wandb

from potstill.study.tracking.protocol import Row, RunInfo, summary

TIMEOUT = 20.0  # seconds for the server to answer


class WandbRun:
    """One run at Weights & Biases."""

    def __init__(self, info: RunInfo) -> None:
        info.folder.mkdir(parents=True, exist_ok=True)
        for old in (info.folder / "wandb").glob(f"offline-run-*-{info.id}"):
            shutil.rmtree(old)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "potstill"),
            group=info.study,
            name=info.run,
            id=info.id,
            config=dict(info.config),
            dir=info.folder,
            resume=None if os.environ.get("WANDB_MODE") == "offline" else "allow",
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                disable_git=True,
                x_disable_stats=True,
                init_timeout=TIMEOUT,
            ),
        )
        self.last = self._run.step - 1

    def log(self, rows: Sequence[Row]) -> None:
        for step, numbers in rows:
            self._run.log(dict(numbers), step=step)

    def close(self, result: Mapping[str, Any]) -> None:
        self._run.summary.update(summary(result) | {"status": result.get("status", "running")})
        if result.get("cause"):
            self._run.summary["cause"] = result["cause"]
        self._run.finish(exit_code=int(result.get("status") == "failed"))


open_run = WandbRun
