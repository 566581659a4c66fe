"""The packages that `benchmarks.gpu` needs, and how to bring them to a machine without a network.

    python -m benchmarks.gpu_packages --python 3.12 --into runs/gpu/wheels

downloads wheels, on a machine that has a network, of what GPU images often lack. On the machine
with the GPU `benchmarks.gpu` installs those that it misses from that folder, into a folder next to
it. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.beside import TRL

ROOT = Path(__file__).parents[1]
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
WHEELS, SITE = ROOT / "runs" / "gpu" / "wheels", ROOT / "runs" / "gpu" / f"site-{VERSION}"
# Modules without which nothing runs, and the distributions of each.
REQUIRED: dict[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "transformers": ("transformers", "huggingface-hub"),
    "tokenizers": ("tokenizers",),
    "safetensors": ("safetensors",),
    "peft": ("peft",),
    "accelerate": ("accelerate",),
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "pydantic": ("pydantic", "pydantic_core", "annotated-types", "typing-inspection"),
    "typer": ("typer", "annotated-doc", "shellingham"),
    "rich": ("rich",),
    "jinja2": ("Jinja2",),
    "filelock": ("filelock",),
    "fsspec": ("fsspec",),
    "tomli_w": ("tomli_w",),
}
# Modules without which a part is skipped, and that part.
OPTIONAL: dict[str, tuple[tuple[str, ...], str]] = {
    "pytest": (("pytest", "pluggy", "iniconfig"), "the engine contract"),
    "vl_convert": (("vl-convert-python",), "the charts of the study's report"),
    "trl": (("trl",), "the step next to TRL's"),
    "datasets": (("datasets", "dill", "multiprocess", "xxhash"), "the step next to TRL's"),
}
# What a GPU image with torch and transformers often lacks.
OFTEN_MISSING = ("pydantic", "tomli_w", "vl_convert", "trl", "datasets")
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64"]


def missing(names: Iterable[str]) -> list[str]:
    """Modules that cannot be found; none is imported."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def distributions(modules: Iterable[str]) -> list[str]:
    """The distributions that contain modules, and those that they need."""
    known = {**REQUIRED, **{name: parts for name, (parts, _) in OPTIONAL.items()}}
    return [part for module in modules for part in known[module]]


def install(wheels: Path, site: Path) -> str:
    """Install what is missing from a folder of wheels; returns what was done, or what failed."""
    lacking = missing((*REQUIRED, *OPTIONAL))
    have = {path.name.split("-")[0].lower() for path in wheels.glob("*.whl")}
    names = [n for n in distributions(lacking) if n.replace("-", "_").lower() in have]
    if not names:
        return ""
    options = ["--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check", "-q"]
    words = [sys.executable, "-m", "pip", "install", *options, "--upgrade"]
    words += ["--find-links", str(wheels), "--target", str(site), *names]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    importlib.invalidate_caches()
    if done.returncode:
        return f"installing {', '.join(names)} from {wheels} failed: {done.stderr.strip()[-300:]}"
    return f"installed from {wheels}: {', '.join(names)}"


def advice(modules: Iterable[str]) -> str:
    """What to do about missing modules."""
    return (
        f"missing from {sys.executable}: {', '.join(modules)}. With a network run `make study` "
        "first, which sets up .venv with all of them. Without one run `make gpu-wheels "
        f"PYTHON_VERSION={VERSION}` on another machine, copy its runs/gpu/wheels to the same place "
        "here, and run `make gpu` again; or choose another interpreter with "
        "`make gpu PYTHON=/path/to/python3`"
    )


def download(python: str, into: Path) -> int:
    """Download wheels of what is often missing, in the versions of constraints.txt."""
    words = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    words += ["--no-deps", "--only-binary=:all:", "--python-version", python]
    words += ["--implementation", "cp"]
    words += [word for platform in PLATFORMS for word in ("--platform", platform)]
    names = [TRL if name == "trl" else name for name in distributions(OFTEN_MISSING)]
    words += ["-c", str(ROOT / "constraints.txt"), "-d", str(into), *names]
    return subprocess.run(words, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=VERSION, help="Python's version on the other machine")
    parser.add_argument("--into", type=Path, default=WHEELS)
    args = parser.parse_args()
    return download(args.python, args.into)


if __name__ == "__main__":
    sys.exit(main())
