"""What an installed potstill carries: every file that its source folder does."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "potstill"


def test_every_file_next_to_the_modules_is_package_data() -> None:
    # Tests run on the source folder, so a file that is left out is only missed after an install.
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packed = {
        path for pattern in tools["package-data"]["potstill"] for path in SOURCE.glob(pattern)
    }
    files = {
        path for path in SOURCE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert files
    assert files - packed == set()


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in SOURCE.rglob("*.py")}
    assert SOURCE in folders
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []
