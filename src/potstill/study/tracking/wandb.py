"""Weights & Biases: one run a cell, grouped by study; `WANDB_MODE=offline` keeps it in the folder.

Online, the server says which step it has, and what it lacks is sent. Offline files cannot be gone
on with, so those of an interrupted run are written again from its first row. System metrics,
code and console output are left out: a study records what they would show.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import wandb

from potstill.study.tracking import Row, Sheet, summary

PATIENCE = 20.0  # seconds until a server counts as unreachable


class Run:
    """One run at Weights & Biases."""

    def __init__(self, sheet: Sheet) -> None:
        sheet.folder.mkdir(parents=True, exist_ok=True)
        for old in (sheet.folder / "wandb").glob(f"offline-run-*-{sheet.id}"):
            shutil.rmtree(old)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "potstill"),
            group=sheet.study,
            name=sheet.cell,
            id=sheet.id,
            config=dict(sheet.config),
            dir=sheet.folder,
            resume=None if os.environ.get("WANDB_MODE") == "offline" else "allow",
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                disable_git=True,
                x_disable_stats=True,
                init_timeout=PATIENCE,
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


open_run = Run
