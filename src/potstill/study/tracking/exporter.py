"""One process per tracker that follows a study's folder while the study runs.

`potstill study` starts `python -m potstill.study.tracking.exporter FOLDER TRACKER` for each
tracker. The process sends what is left and exits when its standard input is closed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import filelock

from potstill.study.files import write_text
from potstill.study.storage import StudyFolder
from potstill.study.tracking.follower import Follower
from potstill.study.tracking.log import without_secrets_in_log

EVERY = 0.5  # seconds between two readings of the folder
PATIENCE = 120.0  # seconds that a study waits for its trackers after its last run


@contextmanager
def following(
    folder: StudyFolder, trackers: Sequence[str], patience: float | None = PATIENCE
) -> Iterator[None]:
    """Export to trackers while the block runs, and send what is left after it.

    Args:
        folder: the study's.
        trackers: their names.
        patience: seconds that they may take after the block; None: no limit.
    """
    processes = {name: _start(folder.path, name) for name in trackers}
    try:
        yield
    finally:
        for process in processes.values():
            assert process.stdin is not None
            process.stdin.close()
        end = time.monotonic() + (patience or 0.0)
        for name, process in processes.items():
            try:
                left = None if patience is None else max(0.1, end - time.monotonic())
                if process.wait(left):
                    code = process.returncode
                    _write_trouble(folder, name, f"its process ended with exit code {code}")
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                late = f"it took more than {patience:g} s after the last run"
                _write_trouble(folder, name, late)


def _start(path: Path, tracker: str) -> subprocess.Popen[bytes]:
    (path / "track").mkdir(parents=True, exist_ok=True)
    (path / "track" / f"{tracker}.trouble").unlink(missing_ok=True)
    command = [sys.executable, "-m", "potstill.study.tracking.exporter", str(path), tracker]
    with (path / "track" / f"{tracker}.log").open("w", encoding="utf-8") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)


def _write_trouble(folder: StudyFolder, tracker: str, message: str) -> None:
    """Note an error that concerns no single run."""
    write_text(folder.path / "track" / f"{tracker}.trouble", message)


def main(path: Path, tracker: str) -> None:
    """The exporter process: follow a folder until standard input is closed."""
    folder = StudyFolder(path)
    closed = threading.Event()

    def wait_for_end_of_input() -> None:
        sys.stdin.read()
        closed.set()

    threading.Thread(target=wait_for_end_of_input, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the study, which ends this process
    lock = filelock.FileLock(path / "track" / f".{tracker}.lock")  # one process per folder
    with without_secrets_in_log(), lock:
        follower = Follower(folder.study, folder, tracker)
        while not closed.wait(EVERY):
            follower.update()
        follower.update(now=True)
        follower.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
