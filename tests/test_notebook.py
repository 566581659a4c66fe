"""The notebook runs from top to bottom and shows what its text announces.

`python tests/test_notebook.py` runs it and writes the new output into it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"


def executed(folder: Path) -> Any:
    """The notebook after a fresh kernel has run it in a folder; warnings are left out."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(PATH, as_version=4)
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # clock times
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    return notebook


def shown(notebook: Any) -> str:
    """Everything that the code printed or displayed as text."""
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", ())]
    return "\n".join(str(one.get("text") or one["data"]) for one in outputs)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = executed(tmp_path)
    text = shown(notebook)
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert "of 60 held-out problems after 20 steps" in text
    assert "train/loss" in text, "no table of metrics"
    assert "image/png" in text, "no plot"
    assert "tiny-qwen:" in text, "no verdict"
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()


def test_the_stored_notebook_is_small_and_has_its_output() -> None:
    import nbformat

    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    assert PATH.stat().st_size < 60_000
    assert "image/png" in shown(notebook)


if __name__ == "__main__":
    import nbformat

    with tempfile.TemporaryDirectory() as scratch:
        nbformat.write(executed(Path(scratch)), PATH)
