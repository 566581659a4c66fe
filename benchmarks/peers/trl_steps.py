"""TRL's `DistillationTrainer`, one step a request. Runs in TRL's environment, see `beside`."""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from benchmarks.beside import Work, peak_memory, serve


class Stepper(DistillationTrainer):
    """The trainer itself, given ids for prompts, and for step 0 the completions too."""

    def __init__(self, job: dict[str, Any], **rest: Any) -> None:
        self.job, self.seen = job, 0.0
        super().__init__(**rest)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        self.asked = [int(prompt) for prompt in prompts]
        return [self.job["prompts"][i] for i in self.asked], None, {}

    def _generate_single_turn(self, *args: Any, **rest: Any) -> list[list[int]]:
        if self.state.global_step == 0:
            return [self.job["completions"][i] for i in self.asked]
        found: list[list[int]] = super()._generate_single_turn(*args, **rest)
        self.tokens = sum(map(len, found))
        return found

    def compute_loss(self, *args: Any, **rest: Any) -> Any:
        loss = super().compute_loss(*args, **rest)
        self.seen = loss.item()
        return loss


class Gate(TrainerCallback):
    """Lets the trainer take a step when it is asked for one."""

    def __init__(self) -> None:
        self.ask: queue.Queue[None] = queue.Queue()
        self.answer: queue.Queue[float | BaseException] = queue.Queue()
        self.start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.ask.get()
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.answer.put(time.perf_counter() - self.start)


def begin(job: dict[str, Any]) -> Work:
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    device = job.get("device", "cpu")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(job[role], dtype=torch.float32)
        for role in ("student", "teacher")
    )
    config = DistillationConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=job["batch"],
        max_steps=len(job["prompts"]) // job["batch"],
        max_completion_length=job["max_tokens"],
        temperature=1.0,
        beta=1.0,  # exact reverse KL
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        gradient_checkpointing=job["gradient_checkpointing"],
        bf16=job.get("dtype") == "bfloat16",
        use_cpu=device == "cpu",
        shuffle_dataset=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    gate = Gate()
    trainer = Stepper(
        job,
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(len(job["prompts"]))]}),
        processing_class=AutoTokenizer.from_pretrained(job["student"]),
        callbacks=[gate],
    )

    def train() -> None:
        try:
            trainer.train()
        except BaseException as error:
            gate.answer.put(error)

    loaded = peak_memory(device)
    threading.Thread(target=train, daemon=True).start()

    def work(request: dict[str, Any]) -> dict[str, Any]:
        gate.ask.put(None)
        seconds = gate.answer.get()
        if isinstance(seconds, BaseException):
            raise seconds
        tokens = getattr(trainer, "tokens", 0)
        return {
            "seconds": seconds,
            "loss": trainer.seen,
            "tokens": tokens,
            "memory": peak_memory(device),
            "loaded": loaded,
        }

    return work


if __name__ == "__main__":
    serve(begin)
