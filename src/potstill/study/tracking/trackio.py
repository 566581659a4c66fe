"""Trackio: a project a study, a run a cell; a database in the study's folder, or where
`TRACKIO_DIR`, `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL` say.

It prints to stdout and tells of trouble in warnings, so it wants a process of its own, which
`follow` gives it. The database knows its last step: what it lacks is sent.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from contextvars import Context
from typing import Any

from potstill.study.tracking import Row, Sheet, summary


class Run:
    """One run in a Trackio project."""

    def __init__(self, sheet: Sheet) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(sheet.folder))  # read when it is imported
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        # Other cells of the study are open: in a context of its own, none of them is ended.
        self._run = Context().run(
            trackio.init,
            project=project(sheet.study),
            name=f"{sheet.cell}/{sheet.id}",
            group=sheet.cell.rpartition("/")[0],
            config=dict(sheet.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        known = SQLiteStorage.get_last_step(project(sheet.study), run_id=self._run.id)
        self.last = -1 if known is None else int(known)
        self._step = max(self.last, 0)

    def log(self, rows: Sequence[Row]) -> None:
        def send() -> None:
            for self._step, numbers in rows:
                self._run.log(dict(numbers), step=self._step)

        self._told(send)

    def close(self, result: Mapping[str, Any]) -> None:
        def end() -> None:
            if result:
                self._run.log(summary(result) | {"status": result["status"]}, step=self._step)
            self._run.finish()

        self._told(end)

    def _told(self, work: Any) -> None:
        """Trackio warns where others raise; a row that is lost must not pass for sent."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            work()
        if said:
            raise RuntimeError(str(said[0].message))


def project(study: str) -> str:
    """A study's name as Trackio takes it: no dots."""
    return re.sub(r"[^\w-]", "-", study)


open_run = Run
