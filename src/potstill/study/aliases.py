"""Names of training settings in transformers and TRL that a study file may use for ours.

A name is here if it means the same thing to the letter; it is written as ours when the file is
read. Names that look alike and mean something else are refused with the setting to use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.errors import Errors, PotstillError
from potstill.fields import brief

# transformers' TrainingArguments, TRL's trainer configs and TRL's ModelConfig.
SAME = {
    "num_train_epochs": "epochs",
    "max_completion_length": "max_tokens",
    "max_new_tokens": "max_tokens",
    "lr_scheduler_type": "schedule",
    "min_lr_rate": "min_rate",
    "lora_r": "lora_rank",
    "lora_target_modules": "lora_target",
    "adam_beta1": "betas",
    "adam_beta2": "betas",
}
SCHEDULERS = {"linear": "linear", "cosine": "cosine", "constant_with_warmup": "constant"}
OTHER = {
    "max_steps": "steps is their number times a recipe's budget: write steps",
    "per_device_train_batch_size": "batch_size is the prompts of a step on all devices together",
    "train_batch_size": "batch_size is the prompts of a step on all devices together",
    "gradient_accumulation_steps": "batch_size is the whole step; engine.batch_tokens splits it",
    "warmup_steps": "warmup is also a number of steps, whose first one is trained: write warmup",
    "warmup_ratio": "warmup below 1 is a share of the run, whose first step is trained",
    "adam_epsilon": "it is 1e-8",
    "optim": "the optimizer is AdamW: betas, weight_decay",
    "eval_steps": "steps between evaluations are eval.every, between validations validate_every",
    "logging_steps": "every step is recorded",
    "save_steps": "save_every keeps model folders, checkpoint_every is for interruptions",
    "save_total_limit": "the last two checkpoints are kept, and the best one",
    "load_best_model_at_end": 'write keep = "best" and validation = 100',
    "metric_for_best_model": 'best_by is "loss" or "accuracy"',
    "resume_from_checkpoint": "the same command continues; see also `potstill run --from`",
    "seed": "seeds is a list at the top level: seeds = [0, 1, 2]",
    "lmbda": "on_policy of a recipe is the share of the student's prompts",
    "beta": "write student_loss = { jsd = 0.5 }",
    "num_generations": "batch_size is the prompts of a step, each completed once",
    "bf16": 'write engine.student.dtype = "bfloat16"',
    "fp16": 'write engine.student.dtype = "float16"',
    "gradient_checkpointing": "it is engine.gradient_checkpointing",
    "max_length": "max_tokens is the length of a completion, without the prompt",
    "max_seq_length": "max_tokens is the length of a completion, without the prompt",
    "report_to": 'write track = ["wandb"] at the top level',
    "output_dir": "it is --out of the command",
}


def with_our_names(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The table of a study file with our names in its [train].

    Args:
        table: the whole table.
        where: how messages call it.

    Raises:
        PotstillError: a setting has two names, or a name means something else.
    """
    train = table.get("train")
    if not isinstance(train, Mapping):
        return dict(table)
    errors, ours = Errors(), {key: value for key, value in train.items() if key not in SAME}
    betas: dict[int, Any] = {}
    for key, value in train.items():
        with errors:
            if key in OTHER:
                raise PotstillError(f'{where}: unknown key "train.{key}"', OTHER[key])
            if key not in SAME:
                continue
            name = SAME[key]
            if name in ours:
                others = [name, *(k for k, v in SAME.items() if v == name and k != key)]
                got = next(other for other in others if other in train)
                raise PotstillError(
                    f"{where}: train.{key} and train.{got} are one setting, got both",
                    "leave one of them out",
                )
            if name == "betas":
                betas[int(key[-1]) - 1] = value
            else:
                ours[name] = _value(key, value, where)
    if betas:
        ours["betas"] = [betas.get(0, 0.9), betas.get(1, 0.95)]
    errors.check()
    return {**table, "train": ours}


def _value(key: str, value: Any, where: str) -> Any:
    """The value of a name in our words."""
    if key != "lr_scheduler_type":
        return value
    if isinstance(value, str) and value in SCHEDULERS:
        return SCHEDULERS[value]
    raise PotstillError(
        f"{where}: train.lr_scheduler_type is {', '.join(SCHEDULERS)}, got {brief(value)}",
        'a constant rate from the first step on is schedule = "constant" and warmup = 0'
        if value == "constant"
        else "see schedule in docs/training.md for others",
    )
