"""Models that potstill has trained, named by the folder of their run."""

from __future__ import annotations

from pathlib import Path

from potstill.errors import PotstillError


def model_of(name: str) -> str:
    """The model that a reference names: of a run's folder, its student; other names as they are.

    Raises:
        PotstillError: the run has no student.
    """
    try:
        folder = Path(name).expanduser()
        run = (folder / "result.json").is_file() or (folder / "metrics.jsonl").is_file()
    except (OSError, RuntimeError, ValueError):  # no path
        return name
    if not run:
        return name
    if not (folder / "result.json").is_file():
        raise PotstillError(
            f'"{name}" is a run that has not ended, and has no student yet',
            "wait until it has ended, or name one of its students/step-N",
        )
    if not (folder / "student").is_dir():
        raise PotstillError(
            f'"{name}" is a run that kept no student: it failed, or train.save was false',
            "run it again with train.save = true, or name another model",
        )
    return str(folder / "student")
