"""Write the data of the examples: the same word problems in three shapes that people have.

    python examples/write_data.py

The completions are two of the embedded teacher's own for each prompt, at temperature 1.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from potstill import Pair, load_task, open_engine
from potstill.engines import zoo

HERE = Path(__file__).parent
TRAIN, TEST, COMPLETIONS = 400, 120, 2


def write(name: str, rows: list[dict]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (HERE / name).write_text("".join(lines), encoding="utf-8")


def chat(problem) -> dict:
    turns = {"user": problem.question, "assistant": problem.solution}
    return {"messages": [{"role": role, "content": text} for role, text in turns.items()]}


def main() -> None:
    task = load_task("arithmetic", train_size=TRAIN, test_size=TEST, seed=7)
    write("chat.jsonl", [chat(problem) for problem in task.train])
    write("chat-test.jsonl", [chat(problem) for problem in task.test])
    write("prompts.jsonl", [{"prompt": problem.question} for problem in task.train])
    write("prompts-test.jsonl", [{"prompt": problem.question} for problem in task.test])
    pair = Pair(**{role: zoo.folder("tiny-qwen", role) for role in ("student", "teacher")})
    engine = open_engine("torch", pair, seed=0, task=task)
    prompts = [engine.prompt(problem) for problem in task.train for _ in range(COMPLETIONS)]
    rng = np.random.default_rng(0)
    samples = engine.sample("teacher", prompts, [48] * len(prompts), 1.0, rng)
    texts = [engine.decode(sample.tokens) for sample in samples]
    rows = [
        {"prompt": problem.question, "completion": texts[n * COMPLETIONS : (n + 1) * COMPLETIONS]}
        for n, problem in enumerate(task.train)
    ]
    write("completions.jsonl", rows)


if __name__ == "__main__":
    main()
