"""Is a student that collapses by its behaviour found, and is a sound one left in peace?

Trains runs without faults, under the monitor: sound methods over varied settings (lengths,
temperatures, rates, batch sizes, tasks), one-token answers, weak teachers, weak students (pruned,
or with random weights) at sound and at high rates, and the fake engine's one-letter answers, the
same one for all prompts included. The truth comes from held-out prompts that the monitor never
sees, at step 0 and at the end:

- collapsed: one token is half of what the student writes, or one completion half of its
  completions, which was not so at step 0 and is twice the teacher's share, and KL(p, q) is 1 nat or
  more;
- broken: not collapsed, and KL(p, q) or the loss on the teacher's completions is 1.5 times that of
  step 0 plus 0.5 nats, or accuracy is below half of step 0's by two standard errors;
- sound: all others.

    python -m benchmarks.varied --out runs/varied

Resumable by run.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.diagnosis import rate
from potstill.algorithms.methods import METHODS
from potstill.diagnostics.diagnosis import diagnose
from potstill.diagnostics.monitor import Monitor
from potstill.engines import zoo
from potstill.engines.fake import answer
from potstill.engines.protocol import Engine
from potstill.engines.registry import open_engine
from potstill.problems import Problem
from potstill.settings import Eval, Pair, Train
from potstill.tasks import Task, load_task
from potstill.training.loop import train
from potstill.training.run import RunSpec
from potstill.types import Role

PAIRS = ("tiny-llama", "tiny-qwen")
HELD_OUT = 32
GROUPS = {  # group: what it is
    "settings": "all methods, varied settings",
    "one token": "completions of one token",
    "letters": "fake engine, answers of one letter",
    "one letter": "fake engine, one right letter for all prompts",
    "long": "the same two in 120 steps",
    "weak teacher": "the embedded teacher learns from the embedded student",
    "weak student": "pruned or random students, sound rates",
    "high rate": "the same and the embedded students, rates from 0.02 to 0.3",
}


@dataclass(frozen=True)
class Case:
    """One run."""

    group: str
    method: str
    student: str  # folder, PAIR/ROLE, or "fake"
    teacher: str = ""
    task: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def cases(models: Mapping[str, str], scale: float = 1.0) -> Iterator[Case]:
    """All runs, group by group; one whose prefix leaves no token to the student is left out."""
    for case in drawn(models, scale):
        if METHODS[case.method].prefix(0.0) < case.train["max_tokens"]:
            yield case


def drawn(models: Mapping[str, str], scale: float) -> Iterator[Case]:
    """Settings that are drawn with a fixed seed."""
    rng = np.random.default_rng(16)

    def pick(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    def settings(**changes: Any) -> dict[str, Any]:
        table = {
            "steps": 20,
            "learning_rate": pick(2e-5, 5e-5, 1e-4, 2e-4),
            "batch_size": pick(4, 8, 16),
            "max_tokens": pick(16, 24, 32),
            "temperature": pick(0.7, 1.0, 1.3),
            "teacher_temperature": pick(0.3, 1.0),
            "warmup": pick(0, 5),
        }
        return {**table, **changes}

    def task() -> dict[str, Any]:
        """Mostly the task that the embedded pairs know; of the others they solve nothing."""
        difficulty, digits = pick(2, 2, 2, 1, 3), pick(2, 2, 2, 1)
        return {
            "name": "arithmetic",
            "difficulty": difficulty,
            "digits": 2 if difficulty == 1 else digits,  # there are too few shorter ones
            "train_size": 500,
            "test_size": HELD_OUT,
            "seed": int(rng.integers(100)),
        }

    methods = list(METHODS)
    # those that end on the student's own completions, as the truth is that of the end
    own = [n for n, recipe in METHODS.items() if recipe.on_policy(0.99) > 0]

    def count(n: int) -> range:
        return range(round(scale * n))

    for group, i in [("settings", i) for i in count(63)] + [("one token", i) for i in count(12)]:
        pair, name = PAIRS[i % 2], methods[i % len(methods)]
        changes: dict[str, Any] = {"lora_rank": 4} if i % 10 == 0 else {}
        if group == "one token":
            changes = {"max_tokens": 1, "learning_rate": pick(1e-4, 5e-4, 1e-3)}
        models_of = f"{pair}/student", f"{pair}/teacher"
        yield Case(group, name, *models_of, task(), settings(**changes), i)
    for i in count(40):
        for group in ("letters", "one letter"):
            fast = settings(steps=60, learning_rate=pick(0.1, 0.3, 1.0, 3.0), max_tokens=24)
            letters = {"digits": "3" if group == "one letter" else "0123456789"}
            letters["graded"] = pick("yes", "no")
            yield Case(group, pick("on_policy_gkd", "off_policy"), "fake", "", letters, fast, i)
    for i in count(10):
        pair, name = PAIRS[i % 2], methods[i % len(methods)]
        swapped = f"{pair}/teacher", f"{pair}/student"
        known = {**task(), "difficulty": 2, "digits": 2}
        yield Case("weak teacher", name, *swapped, known, settings(max_tokens=32), i)
    for i in count(12):
        name, weak = methods[i % len(methods)], list(models)[i % len(models)]
        sound = settings(learning_rate=pick(1e-4, 3e-4, 1e-3))
        teacher = f"{weak.split(' ')[1]}/teacher"
        yield Case("weak student", name, models[weak], teacher, task(), sound, i)
    for i in count(24):
        student = {**models, **{f"own {p}": f"{p}/student" for p in PAIRS}}
        weak = list(student)[i % len(student)]
        fast = settings(learning_rate=pick(0.02, 0.05, 0.1, 0.3), warmup=0)
        teacher = f"{weak.split(' ')[1]}/teacher"
        yield Case("high rate", own[i % len(own)], student[weak], teacher, task(), fast, i)
    for i in count(60):
        slow = settings(steps=120, learning_rate=pick(0.03, 0.1, 0.3, 1.0), max_tokens=24)
        letters = {"digits": pick("3", "0123456789"), "graded": pick("yes", "no")}
        yield Case("long", pick("on_policy_gkd", "off_policy"), "fake", "", letters, slow, i)


def weak_students(folder: Path) -> dict[str, str]:
    """Students with half of their layers, and with random weights, of both embedded pairs."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    students = {}
    for pair in PAIRS:
        source = zoo.folder(pair, "student")
        for kind in ("pruned", "random"):
            place = folder / f"{kind}-{pair}"
            students[f"{kind} {pair}"] = str(place)
            if place.exists():
                continue
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
            if kind == "random":
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
            else:
                kept = list(model.model.layers)[::2]
                for index, layer in enumerate(kept):
                    layer.self_attn.layer_idx = index
                model.model.layers = torch.nn.ModuleList(kept)
                model.config.num_hidden_layers = len(kept)
                if getattr(model.config, "layer_types", None):
                    model.config.layer_types = model.config.layer_types[: len(kept)]
            model.save_pretrained(place)
            AutoTokenizer.from_pretrained(source).save_pretrained(place)
    return students


class Letters:
    """The fake engine's task: a digit's letter; without grades if the references are wrong."""

    name = "letters"

    def __init__(self, digits: str, graded: str) -> None:
        def split(lead: str) -> list[Problem]:
            return [
                Problem(f"{lead}{c}{d}{n}", f"{lead}{c}{n}{d}", answer(int(d)))
                for c in "abcdefgh"
                for d in digits
                for n in range(20 // len(digits))
            ]

        self.train, self.test = split(""), split("x")
        self.graded = graded == "yes"

    def grade(self, problem: Problem, text: str) -> Any:
        from potstill.problems import Grade

        right = self.graded and text == problem.answer
        return Grade(right, right)


def held_out(engine: Engine, task: Task, limit: int, role: Role) -> dict[str, float]:
    """Accuracy, distances, and shares of the commonest token and completion at temperature 1."""
    problems = task.test[:HELD_OUT]
    prompts = [engine.prompt(problem) for problem in problems]
    rng = np.random.default_rng(7)
    samples = engine.sample(role, prompts, [limit] * len(prompts), 1.0, rng)
    completions = [sample.tokens for sample in samples]
    readings = list(zip(prompts, completions, strict=True))
    p, q = engine.score(role, readings), engine.score("teacher", readings)
    greedy = engine.sample("teacher", prompts, [limit] * len(prompts), 0.0, rng)
    pairs = zip(prompts, greedy, strict=True)
    reading = engine.score(role, [(prompt, sample.tokens) for prompt, sample in pairs])
    tokens = Counter(token for completion in completions for token in completion)
    right = [
        task.grade(problem, engine.decode(completion)).strict
        for problem, completion in zip(problems, completions, strict=True)
    ]
    return {
        "accuracy": float(np.mean(right)),
        "kl": float(np.mean(np.concatenate(p) - np.concatenate(q))),
        "reading": -float(np.mean(np.concatenate(reading))),
        "token": max(tokens.values()) / sum(tokens.values()),
        "completion": max(Counter(completions).values()) / len(completions),
    }


def truth(
    start: Mapping[str, float], end: Mapping[str, float], teacher: Mapping[str, float]
) -> str:
    """What became of a student: collapsed, broken or sound."""
    alike = any(
        end[name] >= 0.5 > start[name] and end[name] >= 2 * teacher[name]
        for name in ("token", "completion")
    )
    if alike and end["kl"] >= 1:
        return "collapsed"
    error = math.sqrt(max(1e-9, 2 * start["accuracy"] * (1 - start["accuracy"]) / HELD_OUT))
    lost = end["accuracy"] < min(0.5 * start["accuracy"], start["accuracy"] - 2 * error)
    away = any(end[name] > 1.5 * start[name] + 0.5 for name in ("kl", "reading"))
    return "broken" if lost or away else "sound"


def execute(case: Case) -> dict[str, Any]:
    """Train one run; returns its findings and its truth."""
    table = dict(case.train)
    if case.student == "fake":
        task: Task = Letters(**case.task)  # type: ignore[assignment]
        engine = open_engine("fake", PAIRS[0])
    else:
        task = load_task(**case.task)
        pair = Pair(student=zoo.place(case.student), teacher=zoo.place(case.teacher))
        engine = open_engine("torch", pair, seed=case.seed, lora_rank=table.get("lora_rank", 0))
    settings, recipe = Train(**table), METHODS[case.method]
    limit = settings.max_tokens
    start, teacher = (held_out(engine, task, limit, role) for role in ("student", "teacher"))
    evaluation = Eval(problems=1, every=10_000, max_tokens=1)
    monitor = partial(Monitor, RunSpec(recipe, engine, task, case.seed), settings, evaluation)
    trained = train(recipe, engine, task, settings, evaluation, seed=case.seed, monitor=monitor)
    end = held_out(engine, task, limit, "student")
    rows = trained.recorder.metrics
    return {
        "case": asdict(case),
        "truth": truth(start, end, teacher),
        "held_out": {"start": start, "end": end, "teacher": teacher},
        "rows": rows,
    }


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """The figures of each group in Markdown."""
    heads = "group|runs|sound: alarms|collapsed: found|collapsed: cause|broken: found|notes"
    lines = [f"| {heads.replace('|', ' | ')} |", "|---|--:|--:|--:|--:|--:|---|"]
    for group in [*GROUPS, "all"]:
        own = [run for run in runs if group in ("all", run["case"]["group"])]
        if not own:
            continue
        first: dict[str, list[str]] = {"sound": [], "collapsed": [], "broken": []}
        notes: Counter[str] = Counter()
        for run in own:
            found = diagnose(run["rows"], finished=True)
            alarms = [f.cause for f in found if f.kind != "note"]
            first[run["truth"]].append(alarms[0] if alarms else "")
            notes.update(f.cause for f in found if f.kind == "note")
        cells = [
            rate(bool(cause) for cause in first["sound"]),
            rate(bool(cause) for cause in first["collapsed"]),
            rate(cause in ("mode_collapse", "rate_too_high") for cause in first["collapsed"]),
            rate(bool(cause) for cause in first["broken"]),
        ]
        shown = [c if n else "-" for c, n in zip(cells, map(len, _columns(first)), strict=True)]
        named = ", ".join(f"`{name}` {n}" for name, n in notes.most_common())
        what = GROUPS.get(group, group)
        lines.append(f"| {what} | {len(own)} | {' | '.join(shown)} | {named} |")
    return "\n".join(lines)


def _columns(first: Mapping[str, list[str]]) -> list[list[str]]:
    return [first["sound"], first["collapsed"], first["collapsed"], first["broken"]]


def main(words: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.varied", description=__doc__)
    parser.add_argument("--out", default="runs/varied", help="folder; resumable")
    parser.add_argument("--scale", type=float, default=1.0, help="multiple of the runs")
    parser.add_argument("--limit", type=int, default=10_000, help="runs to make now")
    parser.add_argument("--groups", nargs="*", default=list(GROUPS), help="groups; default: all")
    args = parser.parse_args(words)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "runs.jsonl"
    lines = kept.read_text().splitlines() if kept.exists() else []
    done = {Case(**run["case"]).key: run for run in map(json.loads, lines)}
    left = args.limit
    for case in cases(weak_students(out / "models"), args.scale):
        if case.key in done or case.group not in args.groups or not left:
            continue
        left -= 1
        done[case.key] = run = execute(case)
        with kept.open("a") as file:
            file.write(json.dumps(run) + "\n")
        causes = [f.cause for f in diagnose(run["rows"], finished=True)]
        print(case.group, case.method, run["truth"], causes, file=sys.stderr)
    known = {case.key for case in cases(weak_students(out / "models"), args.scale)}
    print(table([run for key, run in done.items() if key in known]))


if __name__ == "__main__":
    main()
