"""Write the trained student as a folder that transformers can load.

The folder does what the study evaluated: its tokenizer has the template of the pair, with the
arguments of the study as defaults, and its generation config ends where training ended and decodes
greedily.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch

from potstill.engines.torch.ends import generation_config
from potstill.engines.torch.loading import ModelPair, load_model
from potstill.engines.torch.quantised import in_floating_point
from potstill.tasks.rendering import with_arguments


def export_student(
    pair: ModelPair,
    model: Any,
    folder: Path,
    *,
    lora: bool,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the student as a folder that transformers can load, atomically.

    LoRA adapters are merged into the weights, and also written to `adapter/`.

    Args:
        pair: the opened pair.
        model: the student; with `lora` its adapters are merged into newly loaded base weights.
        folder: the folder to write.
        lora: whether the student is a base model with adapters.
        weights: whole weights by name, if the model holds only shards.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    decoding = generation_config(pair.tokenizer, pair.eos, pair.vocabulary, pair.rows[0])
    tokenizer = with_arguments(pair.tokenizer, pair.student_spec)
    if lora:
        from peft import PeftModel

        model.save_pretrained(partial / "adapter", state_dict=weights)
        tokenizer.save_pretrained(partial / "adapter")
        decoding.save_pretrained(partial / "adapter")
        # on the CPU, because the run's models fill the devices
        spec = dataclasses.replace(pair.student_spec, device="cpu", device_map=None)
        base = load_model(pair.student, spec, trained=False, merged=False)
        base = in_floating_point(base, getattr(torch, spec.dtype))
        model = PeftModel.from_pretrained(base, partial / "adapter").merge_and_unload()
        weights = None
    model.generation_config = decoding
    model.save_pretrained(partial, state_dict=weights)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
