"""`make gpu` on a CPU: the page, its failures and limits. Nothing here needs a GPU."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmarks import gpu, gpu_decoder, gpu_families, gpu_packages
from benchmarks.gpu_page import (
    FAILED,
    PASSED,
    SKIPPED,
    Heading,
    Result,
    cell_text,
    page,
    rounded,
    section,
    shortened,
    table,
)
from benchmarks.gpu_section import Section

import closeness

ROOT = Path(__file__).parents[1]
FAKES = {
    "gpu_fake_passes": "section.table('Speeds.', ['rows', 'tokens/s']).row(8, 1234.5)",
    "gpu_fake_fails": "section.text('before'); raise ValueError('wrong | number')",
    "gpu_fake_hangs": "section.table('', ['a']).row(1); time.sleep(60)",
    "gpu_fake_dies": "os._exit(9)",
    "gpu_fake_skips": "section.skip('the section', 'there is no such package')",
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Sections that go wrong in every way, after one another."""
    folder = tmp_path_factory.mktemp("gpu")
    for name, body in FAKES.items():
        text = f"import os, time\n\n\ndef run(section):\n    {body}\n"
        (folder / f"{name}.py").write_text(text)
    plans = [gpu.Plan(name, f"Title of {name}", name, 1) for name in FAKES]
    book = gpu.Book(folder, 0.4, "cpu", True, "a CPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setattr(gpu, "LEAST", 0.5)
        gpu.run_all(plans, book, folder)
    results = {result.name: result for result in book.results}
    results["page"] = Result("page", (folder / "page.md").read_text())
    results["log"] = Result("log", (folder / "log.txt").read_text())
    return results


def test_a_section_that_fails_or_hangs_is_reported_and_the_next_ones_run(
    pages: dict[str, Result],
) -> None:
    statuses = {name: pages[name].status for name in FAKES}
    assert list(statuses.values()) == [PASSED, FAILED, FAILED, FAILED, SKIPPED]
    assert pages["gpu_fake_fails"].failed == [["the section", "ValueError: wrong | number"]]
    assert pages["gpu_fake_dies"].failed[0][1].startswith("it ended with exit code 9")
    (reason,) = pages["gpu_fake_hangs"].failed
    assert reason[0] == "time" and "not finished after" in reason[1]


def test_what_a_section_wrote_before_it_failed_is_on_the_page(pages: dict[str, Result]) -> None:
    text = pages["page"].title
    assert text.startswith("# potstill on a CPU\n")
    assert "5 sections: 1 passed, 3 failed, 1 skipped." in text
    assert "Speeds.\n\n| rows | tokens/s |\n|--:|--:|\n| 8 | 1,234 |" in text
    assert "before" in text and "- the section: there is no such package" in text
    assert pages["gpu_fake_hangs"].blocks[0]["rows"] == [[1]]
    assert "ValueError: wrong | number" in pages["log"].title and "Traceback" in pages["log"].title


def test_the_time_of_a_hanging_section_is_its_share(pages: dict[str, Result]) -> None:
    hanging = pages["gpu_fake_hangs"]
    assert 1 < hanging.limit < 24 and hanging.seconds < hanging.limit + 3
    limits = [pages[name].limit for name in FAKES]
    assert limits[-1] > limits[0]  # what one section leaves goes to the next ones


def test_without_time_every_section_is_on_the_page_with_a_reason(tmp_path: Path) -> None:
    words = ["--minutes", "0.02", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    text = (tmp_path / "page.md").read_text()
    assert done.returncode == 0, done.stderr
    assert text.startswith("# potstill on a CPU (no GPU was used)")
    assert f"command: `python -m benchmarks.gpu {' '.join(words)}`" in text
    for i, plan in enumerate(gpu.PLANS, 1):
        assert f"## {i}. {plan.title}\n\nSkipped, 0 s.\n\nSkipped:\n\n- the section: 0 s" in text


def test_a_killed_command_leaves_its_page_and_no_process(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--out", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen([*words, "--only", "families"], cwd=ROOT, env=env)
    log = tmp_path / "log.txt"
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert "## 1. Families of models in bfloat16" in (tmp_path / "page.md").read_text()
    scratch = log.read_text().split("--scratch ")[1].split()[0]
    assert not Path(scratch).exists()
    running = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if _readable(p)]
    assert not any(scratch.encode() in words for words in running)


def _readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_missing_packages_are_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_packages, "REQUIRED", {"no_such_module": ("no-such-module",)})
    assert gpu.main(["--out", str(tmp_path), "--only", "machine", "--device", "cpu"]) == 1
    text = (tmp_path / "page.md").read_text()
    assert "missing from " in text and ": no_such_module. With a network" in text
    assert "make gpu-wheels" in text and "make gpu-wheels" in capsys.readouterr().err
    assert "1 failed, 1 skipped" in text


def test_wheels_of_what_is_missing_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_packages, "REQUIRED", {"no_such_module": ("no-such_module",)})
    monkeypatch.setattr(gpu_packages, "OPTIONAL", {})
    calls = []

    def run(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(words)
        return subprocess.CompletedProcess(words, len(calls) - 1, "", "no space left")

    monkeypatch.setattr(gpu_packages.subprocess, "run", run)
    assert gpu_packages.install(tmp_path, tmp_path / "site") == "" and not calls
    (tmp_path / "no_such_module-1.0-py3-none-any.whl").touch()
    assert gpu_packages.install(tmp_path, tmp_path / "site").startswith("installed from")
    assert calls[0][-1] == "no-such_module" and "--no-index" in calls[0]
    assert "failed: no space left" in gpu_packages.install(tmp_path, tmp_path / "site")


def test_a_study_runs_from_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    """Its version is unknown then; nothing needs it on one machine."""
    code = (
        "import importlib.metadata as data\n"
        "known = data.version\n"
        "def version(name):\n"
        "    if name == 'potstill':\n"
        "        raise data.PackageNotFoundError(name)\n"
        "    return known(name)\n"
        "data.version = version\n"
        "import potstill.cli.launch\n"
        "from potstill.study.provenance import provenance\n"
        "print(provenance()['potstill'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "not installed\n"), done.stderr


def test_every_package_that_is_fetched_is_known() -> None:
    assert {*gpu_packages.OFTEN_MISSING} <= {*gpu_packages.REQUIRED, *gpu_packages.OPTIONAL}
    assert not gpu_packages.missing(gpu_packages.REQUIRED)


def test_every_section_is_a_module_with_a_function() -> None:
    for plan in gpu.PLANS:
        tree = ast.parse((ROOT / f"{plan.module.replace('.', '/')}.py").read_text())
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert "run" in names and plan.weight > 0, plan.module


def test_tables_are_markdown() -> None:
    assert table(["a", "b"], [["x|y", 0.123456], ["z\n", None]]) == [
        "| a | b |",
        "|---|--:|",
        "| x/y | 0.123 |",
        "| z |  |",
    ]
    assert table(["a"], []) == ["| a |", "|---|"]
    assert [cell_text(v) for v in (1234, 12.5, True)] == ["1,234", "12.5", "yes"]
    assert [rounded(v) for v in (1234.4, 0.00012345)] == ["1,234", "0.000123"]
    assert shortened("a\n b") == "a b" and len(shortened("x" * 900)) < 640


def test_a_page_counts_its_sections() -> None:
    results = [
        Result("a", "First", PASSED, 3.4, 60),
        Result("b", "Second", FAILED, failed=[["x", "y"]]),
        Result("c", "Third"),
    ]
    text = page(Heading("one Card", {"date": "today"}, (1.25, 9), False), results)
    assert text.startswith("# potstill on one Card\n\n- date: today\n- time: 1.2 of 9 minutes\n")
    assert "3 sections: 1 passed, 1 failed, 1 not run." in text and "tiny" not in text
    assert section(results[1])[-3:] == ["Failed:", "", "- x: y"]


def test_half_written_results_are_left_alone(tmp_path: Path) -> None:
    result = Result("a", "A", blocks=[{"kind": "text", "text": "old"}])
    (tmp_path / "half.json").write_text('{"blocks": [')
    result.read(tmp_path / "half.json")
    result.read(tmp_path / "none.json")
    assert result.blocks == [{"kind": "text", "text": "old"}]


def test_a_part_without_time_is_skipped(tmp_path: Path) -> None:
    own = Section(tmp_path / "r.json", tmp_path, "cpu", True, 3.0)
    with own.part("long", least=60) as go:
        assert not go
    with own.part("child") as go:
        raise SystemExit("error: a child ended")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["skipped"][0][0] == "long" and "3 s were left" in found["skipped"][0][1]
    assert found["failed"] == [["child", "SystemExit: error: a child ended"]]


def test_another_token_is_a_tie_only_where_the_decoders_could_mix_it_up() -> None:
    plain = torch.tensor([[[-1.0, -1.01, -5.0], [-1.0, -3.0, -5.0], [-1.0, -2.0, -5.0]]])
    fast = torch.tensor([[[-1.02, -1.0, -5.0], [-1.0, -3.0, -5.0], [-1.0, -2.0, -5.0]]])
    count, same, tied, most = gpu_decoder.compared(plain, fast)
    assert (count, same, tied) == (3, pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert most == pytest.approx(0.02)
    fast[0, 2] = torch.tensor([-3.0, -2.0, -5.0])  # moved by 2, so the gap of 1 is a tie
    assert gpu_decoder.compared(plain, fast)[2] == pytest.approx(2 / 3)
    swapped = plain[:, :, [1, 0, 2]]  # gap and distance are 0.01, 2 and 1
    assert gpu_decoder.compared(plain, swapped)[1:3] == (0.0, 1.0)


def test_a_figure_above_its_tolerance_fails_its_family(tmp_path: Path) -> None:
    own = Section(tmp_path / "r.json", tmp_path, "cpu", True, 60.0)
    rows = own.table("", ["family", *gpu_families.COLUMNS, "s"])
    figures = dict.fromkeys(gpu_families.COLUMNS, (0.001, 0.15))
    figures |= {"scores": (0.2, 0.15), "LoRA: after 4 steps": (1.0, 1.0)}
    figures["samples"] = (float("nan"), 0.15)
    found = {"figures": figures, "errors": {"float32": "RuntimeError: x"}, "seconds": 1.0}
    gpu_families.report(own, rows, "llama", found, "")
    assert [what for what, _ in own.failed] == [
        "llama, scores",
        "llama, samples",
        "llama, LoRA: after 4 steps",
        "llama, float32",
    ]
    assert "**0.2**" in own.blocks[0]["rows"][0]


def test_tolerances_are_wider_where_numbers_are_coarser(monkeypatch: pytest.MonkeyPatch) -> None:
    assert closeness.EXACT and closeness.atol(1e-5) == 1e-5 and not closeness.placed()
    closeness.near([1.0, 2.0], [1.0, 2.0 + 9e-6], 1e-5)
    for wrong in ([1.0, 2.1], [1.0, float("nan")]):
        with pytest.raises(AssertionError, match="off by"):
            closeness.near(wrong, [1.0, 2.0], 1e-5)
    monkeypatch.setattr(closeness, "EXACT", False)
    assert closeness.atol(1e-5) == pytest.approx(2e-4)
    monkeypatch.setattr(closeness, "DTYPE", "bfloat16")
    assert closeness.atol(1e-5) == 0.1 and closeness.rtol(1e-5) == 0.05
    settings = closeness.placed()["settings"]
    assert settings.student.dtype == settings.teacher.dtype == "bfloat16"


@pytest.mark.slow
def test_the_whole_command_passes_on_a_cpu(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--tiny", "--out", str(tmp_path)]
    assert gpu.main(words) == 0, (tmp_path / "page.md").read_text()
    text = (tmp_path / "page.md").read_text()
    assert "0 failed" not in text and "FAILED" not in text
    assert all(f". {plan.title}" in text for plan in gpu.PLANS)
