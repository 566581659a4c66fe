"""Trackio: one project per study, one run per run.

Runs go to a database in the study's folder, or to the place that `TRACKIO_DIR`, `TRACKIO_SPACE_ID`
or `TRACKIO_SERVER_URL` names. Trackio prints to stdout and reports errors as warnings, so it needs
the process of its own that `exporter` starts. A run is continued after the last step that the
database has.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from typing import Any

from potstill.study.tracking.protocol import Row, RunInfo, summary


class TrackioRun:
    """One run of a Trackio project."""

    def __init__(self, info: RunInfo) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(info.folder))  # read when trackio is imported
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        # Other runs of the study are open: a context of its own keeps trackio from closing them.
        self._run = Context().run(
            trackio.init,
            project=project(info.study),
            name=f"{info.run}/{info.id}",
            group=info.run.rpartition("/")[0],
            config=dict(info.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        last = SQLiteStorage.get_last_step(project(info.study), run_id=self._run.id)
        self.last = -1 if last is None else int(last)
        self._step = max(self.last, 0)

    def log(self, rows: Sequence[Row]) -> None:
        def send() -> None:
            for self._step, numbers in rows:
                self._run.log(dict(numbers), step=self._step)

        _raise_warnings(send)

    def close(self, result: Mapping[str, Any]) -> None:
        def end() -> None:
            if result:
                self._run.log(summary(result) | {"status": result["status"]}, step=self._step)
            self._run.finish()

        _raise_warnings(end)


def _raise_warnings(work: Callable[[], None]) -> None:
    """Trackio warns where others raise; a row that it lost must not count as sent."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    if caught:
        raise RuntimeError(str(caught[0].message))


def project(study: str) -> str:
    """A study's name as Trackio accepts it: without dots."""
    return re.sub(r"[^\w-]", "-", study)


open_run = TrackioRun
